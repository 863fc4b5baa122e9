"""Where a layer stands on the depth axis of a plot, read from its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cohomcli.report.names import clean
from cohomcli.topology.results import LayerTopology

Role = Literal["embedding", "block", "norm", "other"]

_NAME = re.compile(r"(?:(encoder|decoder)\.)?(?:(embedding)|(final_norm)|layer_(\d+)(?:\.(attention|mlp))?)")


@dataclass(frozen=True)
class Stop:
    """One place on the depth axis: its tick label, its role and the number of its block (None for the others)."""

    label: str
    role: Role
    block: int | None


@dataclass(frozen=True)
class Track:
    """Layers joined by one line: the residual stream of a stack, or one kind of its sublayers."""

    stack: str
    site: str
    positions: tuple[int, ...]
    layers: tuple[LayerTopology, ...]


@dataclass(frozen=True)
class Depth:
    """The depth axis: its stops in forward order, and the tracks that run along it."""

    stops: tuple[Stop, ...]
    tracks: tuple[Track, ...]

    @property
    def streams(self) -> tuple[Track, ...]:
        """The residual-stream tracks; all tracks when only sublayers were analysed."""
        return tuple(track for track in self.tracks if track.site == "block") or self.tracks


def depth_of(layers: Sequence[LayerTopology]) -> Depth:
    """Places `layers`, given in forward order. A block and its attention and MLP share one stop.

    Where there are two stacks, their embeddings are labelled `enc` and `dec`.
    """
    stops: dict[tuple[str, str], Stop] = {}
    tracks: dict[tuple[str, str], list[tuple[int, LayerTopology]]] = {}
    both = len({stack for stack, _, _ in (_parse(layer.name) for layer in layers) if stack}) > 1
    for layer in layers:
        stack, site, stop = _parse(layer.name)
        label = stack[:3] if both and stop.role == "embedding" else stop.label
        key = (stack, stop.label if stop.role != "other" else layer.name)
        stops.setdefault(key, Stop(label, stop.role, stop.block))
        tracks.setdefault((stack, site), []).append((list(stops).index(key), layer))
    return Depth(
        tuple(stops.values()),
        tuple(
            Track(stack, site, tuple(at for at, _ in places), tuple(layer for _, layer in places))
            for (stack, site), places in tracks.items()
        ),
    )


def _parse(name: str) -> tuple[str, str, Stop]:
    match = _NAME.fullmatch(name)
    if match is None:
        return "", "block", Stop(clean(name, 5), "other", None)
    stack, embedding, norm, block, site = match.groups()
    if embedding:
        stop = Stop("emb", "embedding", None)
    elif norm:
        stop = Stop("norm", "norm", None)
    else:
        stop = Stop(block, "block", int(block))
    return stack or "", site or "block", stop


def short_name(name: str) -> str:
    """A layer's name within 18 characters, for a panel's title: `encoder.layer_11.attention` is `enc.layer_11.attn`."""
    if _NAME.fullmatch(name):
        name = name.replace("encoder.", "enc.").replace("decoder.", "dec.").replace(".attention", ".attn")
    return clean(name, 18)


def labelled(stops: Sequence[Stop], room: int) -> list[int]:
    """The stops to label when there is `room` for so many labels of four characters: the ends, and blocks between.

    Blocks are chosen at round numbers (every 2nd, 5th, 10th, ...) and never within a label's width of another label.
    """
    n = len(stops)
    room = max(2, room * 4 // max(4, *(len(stop.label) for stop in stops)))
    if n <= room:
        return list(range(n))
    gap = n / room
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, n) if s >= gap)
    wanted = [i for role in ("embedding", "norm") for i, stop in enumerate(stops) if stop.role == role]
    wanted += [i for i, stop in enumerate(stops) if (i if stop.block is None else stop.block) % step == 0]
    chosen = [0, n - 1]
    for i in wanted:
        if all(abs(i - j) >= gap for j in chosen):
            chosen.append(i)
    return sorted(chosen)
