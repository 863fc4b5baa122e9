"""Circuit discovery: which heads, neurons and edges of a decoder carry a behaviour, by measured effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohomcli.circuits.detector import CriticalSequenceDetector
    from cohomcli.circuits.discover import discover
    from cohomcli.circuits.results import CircuitOptions

_HOMES = {"CircuitOptions": "results", "CriticalSequenceDetector": "detector", "discover": "discover"}
__all__ = ["CircuitOptions", "CriticalSequenceDetector", "discover"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: results are read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
