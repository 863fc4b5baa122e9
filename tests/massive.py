"""A pico llama with one massive activation: a residual channel far beyond 65504; trained decoders have smaller ones."""

from __future__ import annotations

from typing import Any

import torch

from tests import tinymodels

CHANNEL = 3


def massive_llama() -> Any:
    """Eager attention, float32; the second layer's MLP adds about 1e6 to one channel of the residual stream."""
    model = tinymodels.build("llama")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        mlp.down_proj.weight[CHANNEL] *= 3e4
        mlp.gate_proj.weight *= 10
        mlp.up_proj.weight *= 10
    return model


def call(seed: int = 0) -> dict[str, Any]:
    """Keyword arguments of one call of 9 tokens."""
    ids = torch.randint(4, tinymodels.VOCAB, (1, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
