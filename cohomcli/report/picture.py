"""A figure of the report before it is drawn: its file name, its words, and the function that draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TopologyGroup = Literal["overview", "profile", "diagrams", "barcodes", "betti"]
PrecisionGroup = Literal["precision", "formats", "contributors", "bytes", "pareto"]
RepresentationGroup = Literal["geometry", "similarity", "tracking", "attention"]
OtherGroup = Literal["compare", "training", "pruning", "generation", "circuits"]
Group = TopologyGroup | PrecisionGroup | RepresentationGroup | OtherGroup


@dataclass(frozen=True)
class Picture:
    """`file` is the name inside `plots/`; `alt` says in words what the picture shows, `caption` how to read it."""

    file: str
    group: Group
    title: str
    alt: str
    caption: str
    draw: Callable[[], Figure]


def in_groups(pictures: Iterable[Picture], *groups: Group) -> tuple[Picture, ...]:
    """The pictures of the given groups, in order."""
    return tuple(picture for picture in pictures if picture.group in groups)
