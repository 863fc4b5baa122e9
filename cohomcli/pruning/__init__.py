"""Pruning engine: what of a map's output on the data the next map can do without."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohomcli.pruning.preserve import CircuitPreservationPruner

__all__ = ["CircuitPreservationPruner"]


def __getattr__(name: str) -> Any:
    """Import the public name when it is first asked for: results are read without torch."""
    if name != "CircuitPreservationPruner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cohomcli.pruning.preserve import CircuitPreservationPruner

    return CircuitPreservationPruner
