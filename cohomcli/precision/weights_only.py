"""What can be said of weights without their program: ranges, storage, rounding errors. Nothing about any output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from cohomcli.errors import InputRefused
from cohomcli.precision.formats import Format, get_format, storage_bytes
from cohomcli.precision.result import WeightRow, WeightsResult
from cohomcli.precision.rounding import choose_scale, round_to


def analyse_weights(
    tensors: Mapping[str, torch.Tensor], formats: Sequence[str], why: str, headroom: float = 1.0
) -> WeightsResult:
    """Every real floating-point tensor of `tensors` in every format; `why` says why the program is unknown.

    Names that share their memory are one weight, under the first of them.

    Raises:
        UsageError: an unknown format.
        InputRefused: there is no floating-point tensor, or one is not finite.
    """
    targets = [get_format(name) for name in formats]
    distinct = _distinct(tensors)
    rows = tuple(_row(name, tensor, targets, headroom) for name, tensor in distinct.items() if tensor.numel())
    if not rows:
        raise InputRefused("the file holds no floating-point weight", "give a file with a model's weights")
    stored = {name: tensor.numel() * tensor.element_size() for name, tensor in distinct.items()}
    return WeightsResult(
        why=why,
        formats=tuple(formats),
        weights=rows,
        n_parameters=sum(row.numel for row in rows),
        bytes_stored=sum(stored.values()),
        bytes_by_format={
            f.name: sum(_bytes(row, f) if f.name in row.errors else stored[row.name] for row in rows) for f in targets
        },
        notes=tuple(_notes(tensors, distinct)),
    )


def _distinct(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    found = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        found[name] = tensor
    return found


def _row(name: str, tensor: torch.Tensor, targets: Sequence[Format], headroom: float) -> WeightRow:
    value = tensor.detach().to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    if not bool(torch.isfinite(value).all()):
        raise InputRefused(f"the weight {name!r} is not finite", "repair or replace the checkpoint")
    largest = float(value.abs().max())
    errors: dict[str, float] = {}
    refused: dict[str, str] = {}
    for target in targets:
        if reason := _refusal(value, largest, target, headroom):
            refused[target.name] = reason
        else:
            errors[target.name] = _error(value, target)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return WeightRow(name, tuple(tensor.shape), dtype, tensor.numel(), largest, errors, refused)


def _refusal(value: torch.Tensor, largest: float, target: Format, headroom: float) -> str:
    if target.per_channel:
        return "" if value.dim() >= 2 else f"{value.dim()} dimension(s): int8 per channel needs two"
    if target.n_bytes == 1:
        return ""  # a power-of-two scale fits any range
    if largest * headroom > target.max:
        return f"reaches {largest:.4g}, beyond {target.name}'s largest number {target.max:.6g}"
    return ""


def _error(value: torch.Tensor, target: Format) -> float:
    size = float(value.double().norm())
    scaled = target.n_bytes == 1 and not target.per_channel
    stored = round_to(value, target.name, choose_scale(value, target.name) if scaled else None, 0)
    return float((stored.double() - value.double()).norm()) / size if size > 0.0 else 0.0


def _bytes(row: WeightRow, target: Format) -> int:
    return storage_bytes(target.name, row.numel, row.shape[0] if target.per_channel else 0)


def _notes(tensors: Mapping[str, torch.Tensor], distinct: Mapping[str, torch.Tensor]) -> list[str]:
    notes = []
    other = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if other:
        notes.append(f"{len(other)} tensors are no real floating-point numbers and were left out.")
    tied = sum(t.is_floating_point() for t in tensors.values()) - len(distinct)
    if tied:
        notes.append(f"{tied} names share their memory with an earlier one and are counted once.")
    constant = [n for n, t in distinct.items() if t.numel() > 1 and math.isclose(float(t.min()), float(t.max()))]
    if constant:
        notes.append(f"{len(constant)} tensors hold one value throughout: {', '.join(constant[:3])}.")
    return notes
