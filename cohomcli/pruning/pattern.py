"""What goes together: weights (of every row, of a matrix, N of M), MLP channels, heads, experts, blocks, ranks."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cohomcli.errors import UsageError

PatternKind = Literal["rows", "layer", "nm", "mlp", "heads", "experts", "blocks", "rank"]
STRUCTURED = ("mlp", "heads", "experts", "blocks", "rank")  # no weights become zero: something really goes
_HINT = "write 0.5 (of every row), layer:0.5, 2:4, or mlp: (channels), heads:, experts:, blocks: or rank: with a share"


@dataclass(frozen=True)
class Pattern:
    """`sparsity` is the share of weights, channels, heads, experts or blocks that go; of rank, of a map's parameters.

    With "nm" at most `n` of `m` neighbours in a row stay.
    """

    kind: PatternKind
    sparsity: float
    n: int = 0
    m: int = 0

    def __str__(self) -> str:
        if self.kind == "nm":
            return f"{self.n}:{self.m}"
        return f"{self.sparsity:g}" if self.kind == "rows" else f"{self.kind}:{self.sparsity:g}"


def parse_pattern(text: str) -> Pattern:
    """The pattern that `--pattern` names.

    Raises:
        UsageError: not a pattern, or a sparsity outside [0, 1).
    """
    if match := re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text):
        n, m = int(match[1]), int(match[2])
        if not 0 < n <= m:
            raise UsageError(f"pattern {text!r}: at least one and at most {m} of {m} can stay", _HINT)
        return Pattern("nm", 1 - n / m, n, m)
    kind, colon, share = text.strip().rpartition(":")
    try:
        sparsity = float(share)
    except ValueError:
        raise UsageError(f"{text!r} is no pattern", _HINT) from None
    kinds: dict[str, PatternKind] = {
        "": "rows", "layer": "layer", "mlp": "mlp", "heads": "heads", "experts": "experts", "blocks": "blocks",
        "rank": "rank",
    }  # fmt: skip
    if kind not in kinds or (colon and not kind):
        raise UsageError(f"{text!r} is no pattern", _HINT)
    if not 0 <= sparsity < 1:
        raise UsageError(f"pattern {text!r}: the sparsity must lie in [0, 1)", _HINT)
    return Pattern(kinds[kind], sparsity)


def with_sparsity(pattern: Pattern, sparsity: float) -> Pattern:
    """`pattern` at another sparsity.

    Raises:
        UsageError: N:M, which has its own, or a sparsity outside [0, 1).
    """
    if pattern.kind == "nm":
        raise UsageError(f"{pattern} has one sparsity only: there is nothing to sweep", _HINT)
    if not 0 <= sparsity < 1:
        raise UsageError(f"--sweep {sparsity:g}: the sparsity must lie in [0, 1)", _HINT)
    return replace(pattern, sparsity=sparsity)


def check_fits(pattern: Pattern, name: str, n_inputs: int) -> None:
    """Refuse N:M on a matrix whose rows it does not divide.

    Raises:
        UsageError: it does not.
    """
    if pattern.kind == "nm" and n_inputs % pattern.m:
        raise UsageError(f"{pattern} does not divide the {n_inputs} inputs of {name}", "choose another pattern")


def keep_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """(out, in) boolean: what stays when the lowest `scores` (out, in) go; ties go in order of position.

    Exactly floor(sparsity * in) weights of every row go, as in the Wanda code, or m - n of every m.
    """
    out, n_in = scores.shape
    if pattern.kind == "nm":
        grouped = scores.reshape(out, n_in // pattern.m, pattern.m)
        return _ranks(grouped).ge(pattern.m - pattern.n).reshape(out, n_in)
    if pattern.kind == "layer":
        return _without_lowest(scores.reshape(1, -1), int(scores.numel() * pattern.sparsity)).reshape(out, n_in)
    return _without_lowest(scores, int(n_in * pattern.sparsity))


def _ranks(scores: Tensor) -> Tensor:
    """The place of every score among the few of its last dimension, from 0; equal ones in order of position."""
    places = torch.zeros(scores.shape, dtype=torch.uint8)
    for one in range(scores.shape[-1]):
        for other in range(one):
            later = scores[..., one] >= scores[..., other]
            places[..., one] += later
            places[..., other] += ~later
    return places


def _without_lowest(scores: Tensor, count: int) -> Tensor:
    """All but the `count` lowest of every row; a row whose limit several scores share is sorted."""
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    keep = scores > scores.kthvalue(count, dim=-1, keepdim=True).values
    tied = (keep.count_nonzero(-1) != scores.shape[-1] - count).nonzero().flatten()
    if len(tied):
        order = scores[tied].argsort(dim=-1, stable=True)
        keep[tied] = torch.ones_like(order, dtype=torch.bool).scatter_(-1, order[:, :count], False)
    return keep
