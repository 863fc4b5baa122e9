"""What a caller asks of a pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cohomcli.errors import UsageError
from cohomcli.pruning.pattern import Pattern
from cohomcli.pruning.protect import Kept
from cohomcli.pruning.solve import METHODS

SHRUNK = {"chain"}  # methods whose lambda is chosen where none is given
Allocation = Literal["uniform", "owl"]
CHAINED = {"chain"}  # methods whose target is the dense model's state
_STRUCTURED = {
    "mlp": ("chain", "wanda", "flap", "magnitude", "random"),
    "heads": ("chain", "wanda", "magnitude", "random"),
    "experts": ("chain", "reap", "magnitude", "random"),
    "blocks": ("chain", "influence", "random"),
    "rank": ("chain", "svdllm", "asvd", "svd"),
}


@dataclass(frozen=True)
class PruneOptions:
    """`shrink` None is chosen for every map on the half of the calibration data that the solution did not see.

    `allocation` says how much of each block goes. `protect` names, by map, the rows and columns that stay dense while
    the others meet the sparsity of the whole. `nested`: weights that are zero already stay zero, and count.
    """

    method: str
    pattern: Pattern
    shrink: float | None = None
    seed: int = 0
    protect: Mapping[str, Kept] = field(default_factory=dict)
    allocation: Allocation = "uniform"
    nested: bool = False

    def __post_init__(self) -> None:
        known = _STRUCTURED.get(self.pattern.kind, tuple(METHODS))
        if not any(self.method in methods for methods in _STRUCTURED.values()):
            METHODS.get(self.method)
        if self.shrink is not None and not 0 <= self.shrink <= 1:
            raise UsageError(f"--lambda {self.shrink} must lie in [0, 1]", "auto chooses it for every map")
        if self.method not in known:
            raise UsageError(f"{self.method} does not prune {self.pattern}", f"{', '.join(known)} do")
        if self.allocation not in ("uniform", "owl"):
            raise UsageError(f"unknown allocation {self.allocation!r}", "uniform or owl")
        if self.allocation == "owl" and (self.pattern.kind not in ("rows", "layer") or self.protect):
            raise UsageError(
                "owl gives every block a sparsity of its own: it goes with patterns such as 0.5, unprotected",
                "leave --allocation out",
            )
