"""A pico llama with one massive activation: a residual channel far beyond 65504; trained decoders have smaller ones."""

from __future__ import annotations

from typing import Any

import torch

from tests import tinymodels

CHANNEL, NEURON, SOURCE = 3, 5, 7


def massive_llama() -> Any:
    """Eager attention, float32; the second layer's MLP adds about 1e6 to one channel of the residual stream.

    One neuron makes it, as in trained models (Sun et al., Massive activations in large language models, 2024). It reads
    a channel that is alike in all embeddings, so that the massive number is never a difference of two others.
    """
    model = tinymodels.build("llama")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, SOURCE] = 20.0
        mlp = model.model.layers[1].mlp
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[NEURON] = 0.0
            projection.weight[NEURON, SOURCE] = 5.0
        mlp.down_proj.weight[CHANNEL] = 0.0
        mlp.down_proj.weight[CHANNEL, NEURON] = 3e3
    return model


def call(seed: int = 0) -> dict[str, Any]:
    """Keyword arguments of one call of 9 tokens."""
    ids = torch.randint(4, tinymodels.VOCAB, (1, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
