"""A figure of the report before it is drawn: its file name, its words, and the function that draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Group = Literal["overview", "profile", "diagrams", "barcodes", "betti", "compare"]


@dataclass(frozen=True)
class Picture:
    """`file` is the name inside `plots/`; `alt` says in words what the picture shows, `caption` how to read it."""

    file: str
    group: Group
    title: str
    alt: str
    caption: str
    draw: Callable[[], Figure]
