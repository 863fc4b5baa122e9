"""Pruning engine: what of a map's output on the data the next map can do without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohomcli.lazy import lazily

if TYPE_CHECKING:
    from cohomcli.pruning.preserve import CircuitPreservationPruner

__all__ = ["CircuitPreservationPruner"]

__getattr__ = lazily(__name__, {"CircuitPreservationPruner": "preserve"})
