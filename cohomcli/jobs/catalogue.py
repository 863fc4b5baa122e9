"""The job behind `list-models`."""

from __future__ import annotations

import json
from typing import Any

from cohomcli import assets
from cohomcli.models.presets import PRESETS


def catalogue() -> list[dict[str, Any]]:
    """Built-in models first, read from their own files, then the presets."""
    builtin = [_builtin(name) for name in assets.BUILTIN_MODELS]
    presets = [
        {
            "name": name,
            "kind": preset.kind,
            "n_layer": preset.n_layer,
            "n_parameters": preset.n_parameters,
            "source": preset.hub_id + (" (gated)" if preset.gated else ""),
        }
        for name, preset in PRESETS.items()
    ]
    return builtin + presets


def _builtin(name: str) -> dict[str, Any]:
    from safetensors import safe_open

    folder = assets.model_dir(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with safe_open(folder / "model.safetensors", framework="np") as weights:
        shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118 - no iterator here
    parameters = sum(_product(shape) for shape in shapes)
    causal = config["model_type"] == "gpt2"
    return {
        "name": name,
        "kind": "decoder" if causal else "encoder",
        "n_layer": config.get("n_layer", config.get("num_hidden_layers")),
        "n_parameters": parameters,
        "source": "built-in",
    }


def _product(shape: list[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
