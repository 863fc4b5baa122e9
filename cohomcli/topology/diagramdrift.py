"""Drift between the persistence diagrams of two layers, for runs whose activations were not kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cohomcli.topology.distances import wasserstein
from cohomcli.topology.results import Diagram, LayerTopology


def diagram_drift(first: LayerTopology, second: LayerTopology) -> float:
    """Wasserstein distance of the diagrams of two layers as a share of the largest it could be, in [0, 1].

    Births and deaths are divided by each layer's scale (mean pairwise distance), so the activations' size plays no
    part. Over all dimensions, sum_k W_1(A_k, B_k) / sum_k (P(A_k) + P(B_k)) / 2, with W_1 under the maximum norm of the
    plane (Cohen-Steiner, Edelsbrunner, Harer, Mileyko 2010) and P the total persistence: half of it is what it costs to
    send every bar to the diagonal, hence the bound. 0 exactly when the bars agree; 1 when classes that never die cannot
    be matched.

    Diagrams forget which text is which, so unrelated clouds of alike shape are near: this is a weaker witness of change
    than a measure between activations, and near 0 does not mean that nothing changed. NaN when the dimensions differ,
    or one of two different clouds has no scale.

    Raises:
        AnalysisIncomplete: more bars than an assignment can hold in memory.
    """
    if [diagram.dimension for diagram in first.diagrams] != [diagram.dimension for diagram in second.diagrams]:
        return float("nan")
    pairs = list(zip(first.diagrams, second.diagrams, strict=True))
    if all(np.array_equal(a.pairs, b.pairs) and len(a.essential) == len(b.essential) for a, b in pairs):
        return 0.0
    if not (first.scale > 0 and second.scale > 0):
        return float("nan")
    scaled = [(_over(a, first.scale), _over(b, second.scale)) for a, b in pairs]
    most = sum((_total(a) + _total(b)) / 2 for a, b in scaled)
    distance = sum(wasserstein(a, b, 1.0, np.inf) for a, b in scaled)
    return float(min(distance / most, 1.0)) if most > 0 else float(distance > 0)


def _over(diagram: Diagram, scale: float) -> Diagram:
    parts = {name: getattr(diagram, name) / scale for name in ("pairs", "essential", "censored")}
    return replace(diagram, **parts)


def _total(diagram: Diagram) -> float:
    return float((diagram.pairs[:, 1] - diagram.pairs[:, 0]).sum())
