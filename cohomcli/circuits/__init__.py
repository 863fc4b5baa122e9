"""Circuit discovery: which heads, neurons and edges of a decoder carry a behaviour, by measured effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohomcli.lazy import lazily

if TYPE_CHECKING:
    from cohomcli.circuits.detector import CriticalSequenceDetector
    from cohomcli.circuits.discover import discover
    from cohomcli.circuits.results import CircuitOptions

__all__ = ["CircuitOptions", "CriticalSequenceDetector", "discover"]

__getattr__ = lazily(
    __name__, {"CircuitOptions": "results", "CriticalSequenceDetector": "detector", "discover": "discover"}
)
