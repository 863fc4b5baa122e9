"""One vector per text from its token vectors, aware of the attention mask on either side."""

from __future__ import annotations

import torch
from torch import Tensor

from cohomcli.models.spec import ModelKind, PoolingName


def resolve_pooling(pooling: PoolingName, kind: ModelKind, prefix: str = "") -> PoolingName:
    """What `auto` means: the last token where a stack reads left to right, the mean where it reads both ways.

    The mean and not CLS for encoders: the embedding layer's CLS vector is the same for every text, so that layer
    would be one point. An encoder-decoder takes the mean on the encoder's side and the last token on the decoder's.
    """
    if pooling != "auto":
        return pooling
    return "last" if kind == "decoder" or prefix == "decoder." else "mean"


def pool(states: Tensor, mask: Tensor, pooling: PoolingName) -> Tensor:
    """Pool (B, T, d) to (B, d); `mask` is (B, T), nonzero on real tokens, each row holding at least one.

    `last` and `cls` take the last and the first real token, `mean` averages the real ones.
    """
    real = mask != 0
    if pooling == "mean":
        weights = real.to(states.dtype).unsqueeze(-1)
        # zero the padding by selection: 0 * inf would be NaN
        kept = torch.where(real.unsqueeze(-1), states, torch.zeros((), dtype=states.dtype, device=states.device))
        return kept.sum(dim=1) / weights.sum(dim=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    index = (real * (positions + 1)).argmax(dim=1) if pooling == "last" else real.to(torch.int64).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), index]
