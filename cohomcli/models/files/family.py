"""From a state dict to a model: which transformers architecture has these names and shapes, and what that assumes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cohomcli.models.files import family_decoders as decoders
from cohomcli.models.files import family_encoders as encoders
from cohomcli.models.files.heads import Inference
from cohomcli.models.files.shapes import Backbone, find_backbone

_Infer = Callable[[Backbone, dict[str, Any]], tuple[Inference, dict[str, Tensor]]]

# (a tensor only this family has, the stack's usual name inside its model with a head, how to infer the rest)
_FAMILIES: dict[str, tuple[str, str, _Infer]] = {
    "gpt2": ("h.0.attn.c_attn.weight", "transformer.", decoders.gpt2),
    "gpt_neox": ("layers.0.attention.query_key_value.weight", "gpt_neox.", decoders.gpt_neox),
    "opt": ("decoder.layers.0.fc1.weight", "model.", decoders.opt),
    "llama": ("layers.0.mlp.gate_proj.weight", "model.", decoders.llama),
    "bert": ("encoder.layer.0.attention.self.query.weight", "bert.", encoders.bert),
    "roberta": ("encoder.layer.0.attention.self.query.weight", "roberta.", encoders.bert),
    "distilbert": ("transformer.layer.0.attention.q_lin.weight", "distilbert.", encoders.distilbert),
    "vit": ("embeddings.patch_embeddings.projection.weight", "vit.", encoders.vit),
}
# What the names of well-known code give away when no transformers class has them.
_KNOWN_CODE = (
    (re.compile(r"(^|\.)layer1\.0\.conv1\.weight$"), "a torchvision ResNet", "torchvision.models.resnet18()"),
    (re.compile(r"(^|\.)features\.0\.(0\.)?weight$"), "a torchvision VGG, AlexNet or MobileNet", "torchvision.models"),
    (re.compile(r"(^|\.)blocks\.0\.attn\.qkv\.weight$"), "a timm vision transformer", "timm.create_model(...)"),
    (re.compile(r"(^|\.)stages\.0\.blocks\.0\."), "a timm ConvNeXt or RegNet", "timm.create_model(...)"),
)
_CODE_HINT = "give its code with --model-code file.py:factory"
ANY_HINT = "give its config.json with --config-json, or its code with --model-code file.py:factory"


@dataclass(frozen=True)
class FamilyMatch:
    """An inferred architecture: `config` for transformers, `tensors` under that architecture's names, and every
    setting in `config` that the weights do not prove (`assumptions`).
    """

    model_type: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class NoMatch:
    """Why no model can be built from the weights alone (`why`), and what the user can add (`hint`).

    `family` is the transformers family when that much is certain, else ""; `tensors` are then under its names.
    """

    why: str
    hint: str
    family: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)


def infer_family(tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> FamilyMatch | NoMatch:
    """Infer a transformers configuration from names and shapes.

    `facts` are the settings saved beside the weights (nanoGPT's `model_args` say how many heads there are). What
    weights cannot show is taken from published models of the same size, as an assumption; where those disagree, the
    answer is a NoMatch that asks for `--config-json`.
    """
    for family in sorted(_FAMILIES, key=lambda name: not _is_wrapped(tensors, name)):
        marker, usual, infer = _FAMILIES[family]
        stack = find_backbone(tensors, marker, usual)
        if stack is None:
            continue
        found, renamed = infer(stack, dict(facts or {}))
        counts = [value for key, value in found.config.items() if key.endswith(("_layer", "_layers", "vocab_size"))]
        if found.foreign or not all(counts):
            continue  # the marker is there, but not the rest of the family
        model_type = str(found.config["model_type"])
        if found.lacking:
            why = f"these are {model_type} weights, which do not tell {' or '.join(found.lacking)}"
            return NoMatch(why, "give its config.json with --config-json", model_type, renamed)
        return FamilyMatch(model_type, found.config, renamed, tuple(found.assumptions))
    return _known_code(tensors)


def _is_wrapped(tensors: Mapping[str, Tensor], family: str) -> bool:
    marker, usual, _ = _FAMILIES[family]
    return any(f".{name}".endswith(f".{usual}{marker}") for name in tensors)


def _known_code(tensors: Mapping[str, Tensor]) -> NoMatch:
    for pattern, what, code in _KNOWN_CODE:
        if any(pattern.search(name) for name in tensors):
            hint = f"{_CODE_HINT}, where factory returns {code}"
            return NoMatch(f"these look like the weights of {what}, which is not loadable without its code", hint)
    return NoMatch("the names of these weights belong to no architecture known here", ANY_HINT)
