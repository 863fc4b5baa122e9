"""Checks on loaded weights: are they finite, and what is their fingerprint?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused


def refuse_non_finite(model: nn.Module, name: str) -> None:
    """Every parameter must be finite.

    Raises:
        InputRefused: naming the first tensor that holds NaN or infinity and counting the rest.
    """
    bad = [
        (key, int((~torch.isfinite(value)).sum()))
        for key, value in model.named_parameters()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if bad:
        key, count = bad[0]
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise InputRefused(
            f"model {name!r} has {count} NaN or infinite weights in {key!r}{more}",
            "the file is corrupt or training diverged",
        )


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers in name order: name, dtype, shape, raw little-endian bytes."""
    return fingerprint_tensors(_tensors(model))


def fingerprint_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The same over any named tensors; no name may occur twice."""
    found = dict(tensors)
    return fingerprint_one_by_one(found, found.__getitem__)


def fingerprint_one_by_one(names: Iterable[str], tensor: Callable[[str], Tensor]) -> str:
    """The same over tensors that are fetched by name, so that memory holds one of them."""
    digest = hashlib.sha256()
    for name in sorted(names):
        value = tensor(name)
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        data = value.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
