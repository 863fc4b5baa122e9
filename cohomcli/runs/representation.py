"""A representation result on disk: the section `representation` of `results.json`, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohomcli.topology.figures import (
        AttentionTopology,
        HeadTopology,
        LayerTracking,
        RepresentationResult,
        SimilarityMatrix,
        TrackedDimension,
    )


def representation_document(result: RepresentationResult) -> dict[str, Any]:
    """The section as docs/results.md describes it; what was not asked for is left out."""
    document: dict[str, Any] = {}
    if result.similarity:
        document["similarity"] = [asdict(matrix) for matrix in result.similarity]
    if result.tracking is not None:
        document["tracking"] = asdict(result.tracking)
    if result.attention is not None:
        document["attention"] = asdict(result.attention)
    return document


def read_representation(document: Mapping[str, Any]) -> RepresentationResult:
    """The result that `representation_document` wrote.

    Raises:
        KeyError, TypeError: the document is damaged or of another version.
    """
    from cohomcli.topology.figures import RepresentationResult

    tracking, attention = document.get("tracking"), document.get("attention")
    return RepresentationResult(
        similarity=tuple(_read_matrix(matrix) for matrix in document.get("similarity", ())),
        tracking=_read_tracking(tracking) if tracking is not None else None,
        attention=_read_attention(attention) if attention is not None else None,
    )


def _read_matrix(document: Mapping[str, Any]) -> SimilarityMatrix:
    from cohomcli.topology.figures import SimilarityMatrix

    values, layers = _rows(document["values"]), tuple(document["layers"])
    return SimilarityMatrix(**{**document, "layers": layers, "values": values})


def _read_tracking(document: Mapping[str, Any]) -> LayerTracking:
    from cohomcli.topology.figures import LayerTracking

    parts = {
        "layers": tuple(document["layers"]),
        "kept": tuple(document["kept"]),
        "dimensions": tuple(_read_dimension(dimension) for dimension in document["dimensions"]),
    }
    return LayerTracking(**{**document, **parts})


def _read_dimension(document: Mapping[str, Any]) -> TrackedDimension:
    from cohomcli.topology.figures import TrackedDimension

    counts: dict[str, Any] = {name: tuple(document[name]) for name in ("alive", "born", "died")}
    return TrackedDimension(**{**document, **counts, "shared": _rows(document["shared"])})


def _read_attention(document: Mapping[str, Any]) -> AttentionTopology:
    from cohomcli.topology.figures import AttentionTopology

    heads = tuple(_read_head(head) for head in document["heads"])
    return AttentionTopology(**{**document, "heads": heads})


def _read_head(document: Mapping[str, Any]) -> HeadTopology:
    from cohomcli.topology.figures import BarFigures, GraphFigures, HeadTopology, PatternDistances

    parts = {
        "h0": BarFigures(**document["h0"]),
        "h1": BarFigures(**document["h1"]),
        "patterns": PatternDistances(**document["patterns"]),
        "graph": tuple(GraphFigures(**graph) for graph in document["graph"]),
    }
    return HeadTopology(**{**document, **parts})


def _rows(values: Sequence[Sequence[float | None]]) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(row) for row in values)
