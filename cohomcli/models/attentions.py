"""Attention weights of every head, one text at a time, from the model's own eager attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cohomcli.errors import AnalysisIncomplete, InputRefused
from cohomcli.models.batching import encode
from cohomcli.models.calls import uncached
from cohomcli.models.eager import eager_attention
from cohomcli.models.layout import Stack, find_stacks
from cohomcli.models.spec import LoadedModel


def attention_maps(
    loaded: LoadedModel, texts: Sequence[str], max_length: int
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Per text, the weights (heads, T, T) by block name, row i holding what token i attends to.

    Fused kernels keep no weights, so the model runs with eager attention and is put back afterwards. Texts are cut at
    `max_length` tokens and never padded. Of an encoder-decoder these are the encoder's. Blocks without attention are
    left out.

    Raises:
        InputRefused: the architecture hands out no attention weights, or a text without tokens.
        AnalysisIncomplete: weights that are not finite.
    """
    stack = find_stacks(loaded.model).stacks[0]
    device = next(loaded.model.parameters()).device
    with torch.inference_mode(), eager_attention(loaded.model):
        for ids in encode(loaded, texts, max_length).ids:
            maps = _maps(stack, torch.tensor([ids], device=device))
            if not maps:
                raise InputRefused(
                    f"{type(loaded.model).__name__} hands out no attention weights", "leave out --attention-topology"
                )
            for name, weights in maps.items():
                if not np.isfinite(weights).all():
                    raise AnalysisIncomplete(f"the attention weights of {name} are not finite")
            yield maps


def _maps(stack: Stack, ids: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "output_attentions": True}
    arguments |= uncached(stack.module)
    try:
        output: Any = stack.module(**arguments)
    except TypeError:  # a forward that knows no output_attentions
        return {}
    found = getattr(output, "attentions", None) or ()
    size = ids.shape[1]
    return {
        f"{stack.prefix}layer_{at}": weights[0].float().cpu().numpy()
        for at, weights in enumerate(found)
        if isinstance(weights, torch.Tensor) and weights.ndim == 4 and weights.shape[-2:] == (size, size)
    }
