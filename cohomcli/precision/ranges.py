"""The magnitudes that calibration sees, and which formats they leave admissible, with a sentence for each refusal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import masked_entries, run
from cohomcli.precision.formats import Format, get_format
from cohomcli.precision.spec import Admissibility, ComputationGraph, Ranges, Vertex
from cohomcli.precision.unseen import unseen_bound
from cohomcli.precision.vertices import consumers
from cohomcli.progress import Progress, silent

HEADROOM = 2.0
_UNRANGED = ("mask constant", "discrete")
_PER_CHANNEL = re.compile(r"aten\.(linear|addmm|mm|matmul|conv\w*|_?convolution|embedding)\.")


def ranges(captured: Captured, inputs: Sequence[Any], progress: Progress = silent) -> Ranges:
    """Largest and smallest non-zero magnitude of every vertex over `inputs` (float32 runs); entries of masks apart.

    Vertices that only decide something discrete may hold infinities, and have no range.

    Raises:
        UsageError: no inputs.
        AnalysisIncomplete: the model itself produces an infinity or NaN; names where.
    """
    if not inputs:
        raise UsageError("no inputs to take ranges from", "give at least one")
    vertices = captured.graph.vertices
    largest, smallest = np.zeros(len(vertices)), np.full(len(vertices), np.inf)
    peaks = np.zeros((len(inputs), len(vertices)))

    def store(index: int, value: torch.Tensor) -> torch.Tensor:
        known = vertices[index].kind == "weight" and largest[index] > 0.0  # the same for every input
        if value.is_floating_point() and value.numel() and not known and vertices[index].fixed not in _UNRANGED:
            low, high = _extent(vertices[index], value)
            largest[index], smallest[index] = max(largest[index], high), min(smallest[index], low)
            peaks[done, index] = high
        return value

    for done, example in enumerate(inputs):
        progress("ranges", done, len(inputs))
        run(captured, example, torch.float32, store)
    progress("ranges", len(inputs), len(inputs))
    return Ranges(largest, np.where(np.isfinite(smallest), smallest, 0.0), peaks)


def unseen_peaks(graph: ComputationGraph, found: Ranges) -> NDArray[np.float64]:
    """The magnitude (n_vertices,) that one unseen input in 1,000 exceeds (`precision.unseen`, estimated).

    Of a weight the one it has. Few inputs leave much room, many that are alike little: a factor of 3.4 for one input,
    1.8 for four, 1.3 for sixteen; more where magnitudes differ from input to input.
    """
    peaks = found.max_abs.copy()
    if found.peaks is None:
        return peaks
    for v in graph.vertices:
        if v.kind != "weight" and not v.fixed and peaks[v.index] > 0.0:
            seen = found.peaks[:, v.index]
            peaks[v.index] = unseen_bound(seen[seen > 0.0].tolist(), "rel-l2")
    return peaks


def _extent(vertex: Vertex, value: torch.Tensor) -> tuple[float, float]:
    """(smallest non-zero, largest) magnitude of the entries that are no mask; (inf, 0) when all are zero."""
    magnitude = value.abs()
    if vertex.mask_level:
        magnitude = magnitude.masked_fill(masked_entries(vertex, value), 0.0)
    high = float(magnitude.max())
    if not np.isfinite(high):
        raise AnalysisIncomplete(
            f"the float32 model itself is not finite at {describe(vertex)}", "check the model and its inputs"
        )
    return float(magnitude.masked_fill_(magnitude == 0, np.inf).min()), high


def describe(vertex: Vertex) -> str:
    """A vertex for people: "aten.mul.Tensor 'mul_3' in model.layers.0.mlp", "weight 'lm_head.weight'"."""
    if vertex.kind != "op":
        return f"{vertex.kind} {vertex.name!r}"
    return f"{vertex.target} {vertex.name!r}" + (f" in {vertex.module}" if vertex.module else "")


def admissibility(
    graph: ComputationGraph,
    found: Ranges,
    formats: Sequence[str],
    headroom: float = HEADROOM,
    keep: Mapping[str, Sequence[str]] | None = None,
) -> Admissibility:
    """Which formats each vertex may be stored in: range, int8 for weights, keep-lists.

    The largest magnitude seen times `headroom`, and the largest expected of an unseen input, must both fit the range.
    `keep` maps a glob over module paths and weight names ("*.norm", "lm_head*") to the formats allowed there; the last
    pattern that matches wins. Fixed vertices are allowed nothing and have no reason.

    Raises:
        UsageError: an unknown format, a headroom below 1, or a pattern that matches nothing.
    """
    if headroom < 1.0:
        raise UsageError(f"headroom {headroom:g} is below 1", "a value above 1 leaves room for unseen inputs")
    targets = [get_format(name) for name in formats]
    kept = _kept(graph, keep or {})
    readers, peaks = consumers(graph), unseen_peaks(graph, found)
    allowed: NDArray[np.bool_] = np.zeros((len(graph.vertices), len(targets)), dtype=bool)
    reasons: dict[tuple[int, str], str] = {}
    for vertex in graph.vertices:
        if vertex.fixed:
            continue
        extent = (float(found.min_abs[vertex.index]), float(found.max_abs[vertex.index]))
        read_by = [graph.vertices[c] for c in readers.get(vertex.index, [])]
        for column, target in enumerate(targets):
            reason = _refusal(vertex, read_by, target, extent, headroom) or _may_leave(
                vertex, target, extent[1], float(peaks[vertex.index])
            )
            if not reason and vertex.index in kept and target.name not in kept[vertex.index][1]:
                pattern, names = kept[vertex.index]
                reason = f"{describe(vertex)} is kept in {' or '.join(names)} by the keep-list {pattern!r}"
            allowed[vertex.index, column] = not reason
            if reason:
                reasons[vertex.index, target.name] = reason
    return Admissibility(tuple(formats), allowed, reasons)


def _refusal(
    vertex: Vertex, read_by: Sequence[Vertex], target: Format, extent: tuple[float, float], headroom: float
) -> str:
    """Why `vertex` cannot be stored in `target`, or an empty string."""
    largest = extent[1]
    who = describe(vertex)
    if target.per_channel:
        return _int8_refusal(vertex, read_by)
    if target.n_bytes == 1:  # a power-of-two scale puts the largest entry into range, whatever it is
        if vertex.mask_level and not target.overflow_to_inf:
            return f"{who} carries an attention mask, which {target.name} (no infinity) would confuse with scores"
        return ""
    if largest * headroom > target.max:
        margin = f" with headroom {headroom:g}" if largest <= target.max else ""
        return (
            f"{who} reaches {largest:.4g} in magnitude, beyond {target.name}'s largest number {target.max:.6g}{margin}"
        )
    if 0.0 < largest <= target.min_subnormal / 2:
        return (
            f"{who} stays below {largest:.3g} in magnitude, so that {target.name} "
            f"(smallest {target.min_subnormal:.3g}) stores every entry as zero"
        )
    return ""


def _may_leave(vertex: Vertex, target: Format, largest: float, peak: float) -> str:
    """Why an unseen input may take `vertex` out of the range of `target`, or an empty string."""
    if target.n_bytes == 1 or peak <= target.max:
        return ""
    return (
        f"{describe(vertex)} reaches {largest:.4g} in magnitude, and by how inputs differ an unseen one may reach "
        f"{peak:.3g}, beyond {target.name}'s largest number {target.max:.6g}"
    )


def _int8_refusal(vertex: Vertex, read_by: Sequence[Vertex]) -> str:
    if vertex.kind != "weight":
        return f"{describe(vertex)} is no weight: int8 is weight-only"
    if len(vertex.shape) < 2:
        return f"{describe(vertex)} has {len(vertex.shape)} dimension(s): int8 per channel needs two"
    if other := [c for c in read_by if not _PER_CHANNEL.match(c.target)]:
        return (
            f"{describe(vertex)} is read by {describe(other[0])}: int8 is for linear maps, convolutions and embeddings"
        )
    return ""


def _kept(graph: ComputationGraph, keep: Mapping[str, Sequence[str]]) -> dict[int, tuple[str, Sequence[str]]]:
    """Per vertex the last keep pattern that matches its module, a parent of it, or its name."""
    kept: dict[int, tuple[str, Sequence[str]]] = {}
    for pattern, names in keep.items():
        for name in names:
            get_format(name)
        matched = [v for v in graph.vertices if not v.fixed and _matches(pattern, v)]
        if not matched:
            raise UsageError(
                f"the keep pattern {pattern!r} matches no module or weight", "see the module paths of the plan"
            )
        kept.update({v.index: (pattern, names) for v in matched})
    return kept


def _matches(pattern: str, vertex: Vertex) -> bool:
    parts = vertex.module.split(".")
    paths = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(fnmatchcase(path, pattern) for path in [*paths, vertex.name])
