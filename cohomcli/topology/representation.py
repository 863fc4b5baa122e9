"""What is measured between the layers of one model, and of its attention: similarity, tracking, attention graphs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from cohomcli.errors import UsageError
from cohomcli.progress import Progress, silent
from cohomcli.topology.figures import RepresentationResult, SimilarityMatrix
from cohomcli.topology.measures import MEASURES, MeasureMatrix, representation_distances
from cohomcli.topology.tracking import track_layers


@dataclass(frozen=True)
class RepresentationOptions:
    """`similarity` names measures between layers; `neighbours` of a text are tracked over the layers, 0: not at all."""

    similarity: tuple[str, ...] = ()
    neighbours: int = 0
    seed: int = 0
    available_bytes: int | None = None


def check_measures(names: Sequence[str]) -> None:
    """Refuse unknown measures before anything is computed.

    Raises:
        UsageError: no such measure; the hint lists the nearest ones.
    """
    for name in names:
        MEASURES.get(name)
    if len(set(names)) < len(names):
        raise UsageError(f"a measure is named twice: {', '.join(names)}")


def analyze_representation(
    layers: Mapping[str, NDArray[Any]], options: RepresentationOptions, progress: Progress = silent
) -> RepresentationResult:
    """Similarity between and tracking over the `layers`, (n, d_l) activations of the same texts in forward order.

    Raises:
        UsageError: an unknown measure.
        AnalysisIncomplete: more memory needed than `options.available_bytes`.
    """
    n = min((len(x) for x in layers.values()), default=0)
    matrices: dict[str, MeasureMatrix] = {}
    if options.similarity and n > 1:
        matrices = representation_distances(layers, options.similarity, progress, options.available_bytes)
    stream = residual_stream(layers)
    tracking = track_layers(stream, options.neighbours, options.seed, progress) if options.neighbours else None
    return RepresentationResult(tuple(_plain(matrix) for matrix in matrices.values()), tracking)


def residual_stream(layers: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The layers that follow one another: embedding, blocks and final norm of one stack; encoder-decoders: encoder."""
    side = "encoder." if any(name.startswith(("encoder.", "decoder.")) for name in layers) else ""
    pattern = re.compile(re.escape(side) + r"(embedding|layer_\d+|final_norm)")
    return {name: x for name, x in layers.items() if pattern.fullmatch(name)}


def _plain(matrix: MeasureMatrix) -> SimilarityMatrix:
    measure = MEASURES.get(matrix.measure)
    return SimilarityMatrix(
        measure=measure.name,
        title=measure.title,
        kind=measure.kind,
        bounded=measure.bounded,
        paper=measure.paper,
        layers=matrix.names,
        values=tuple(tuple(None if math.isnan(v) else float(v) for v in row) for row in matrix.values),
    )
