"""Which weights may be zero together: rows of equal sparsity, whole matrices, N of M, or channels of an MLP."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cohomcli.errors import UsageError

PatternKind = Literal["rows", "layer", "nm", "mlp"]
_HINT = "write 0.5 (of every row), layer:0.5, 2:4, or mlp:0.25 (of the MLP's channels)"


@dataclass(frozen=True)
class Pattern:
    """`sparsity` is the share of weights or channels that go; with "nm" at most `n` of `m` neighbours in a row stay."""

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
    kind, colon, share = text.rpartition(":")
    try:
        sparsity = float(share)
    except ValueError:
        raise UsageError(f"{text!r} is no pattern", _HINT) from None
    if kind not in ("", "layer", "mlp") or (colon and not kind):
        raise UsageError(f"{text!r} is no pattern", _HINT)
    if not 0 <= sparsity < 1:
        raise UsageError(f"pattern {text!r}: the sparsity must lie in [0, 1)", _HINT)
    kinds: dict[str, PatternKind] = {"": "rows", "layer": "layer", "mlp": "mlp"}
    return Pattern(kinds[kind], sparsity)


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
        return _without_lowest(grouped, pattern.m - pattern.n).reshape(out, n_in)
    if pattern.kind == "layer":
        return _without_lowest(scores.reshape(1, -1), int(scores.numel() * pattern.sparsity)).reshape(out, n_in)
    return _without_lowest(scores, int(n_in * pattern.sparsity))


def _without_lowest(scores: Tensor, count: int) -> Tensor:
    order = scores.argsort(dim=-1, stable=True)
    keep = torch.ones_like(scores, dtype=torch.bool)
    return keep.scatter_(-1, order[..., :count], False)
