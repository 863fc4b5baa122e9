"""Measures read off minimum spanning trees: the light versions of RTD, and the order in which points merge.

RTD-lite: Tulchinskii, Voronkova, Trofimov, Burnaev, Barannikov, "RTD-Lite", AISTATS 2025 (arXiv:2503.11910).
SRTD-lite, Max-RTD-lite, NTS: Wang, Hu, TMLR 2026 (arXiv:2606.06342), definition 3.2 and algorithms 1, 2 and 4.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from cohomcli.topology.measure import MEASURES, Measure
from cohomcli.topology.pairdistances import PairDistances, pair_distances, tree_weight
from cohomcli.topology.results import Array


def rtd_lite(a: PairDistances, b: PairDistances) -> float:
    """(T(w) + T(v)) / 2 - T(min(w, v)), with T the weight of the minimum spanning tree."""
    return (a.tree_weight + b.tree_weight) / 2 - tree_weight(np.minimum(a.condensed, b.condensed))


def max_rtd_lite(a: PairDistances, b: PairDistances) -> float:
    """T(max(w, v)) - (T(w) + T(v)) / 2."""
    return tree_weight(np.maximum(a.condensed, b.condensed)) - (a.tree_weight + b.tree_weight) / 2


def srtd_lite(a: PairDistances, b: PairDistances) -> float:
    """T(max(w, v)) - T(min(w, v)), which is RTD-lite + Max-RTD-lite."""
    return tree_weight(np.maximum(a.condensed, b.condensed)) - tree_weight(np.minimum(a.condensed, b.condensed))


def nts_e(a: PairDistances, b: PairDistances) -> float:
    """Spearman's rho of the lengths of the edges that either minimum spanning tree has.

    Where lengths tie, the tree and with it the value depend on the order of the texts.
    """
    if not (a.defined and b.defined):
        return np.nan
    core = np.union1d(a.tree_edges, b.tree_edges)
    return spearman(a.condensed[core], b.condensed[core])


def nts_m(a: PairDistances, b: PairDistances) -> float:
    """Spearman's rho of the merge times of the edges that either minimum spanning tree has; ties as in NTS-E."""
    if not (a.defined and b.defined):
        return np.nan
    core = np.union1d(a.tree_edges, b.tree_edges)
    return spearman(a.merge_times[core], b.merge_times[core])


def spearman(x: Array, y: Array) -> float:
    """Spearman's rank correlation with mean ranks for ties; NaN when one side is constant."""
    u, v = rankdata(x), rankdata(y)
    u, v = u - u.mean(), v - v.mean()
    norm = float(np.linalg.norm(u) * np.linalg.norm(v))
    return float(np.clip(u @ v / norm, -1.0, 1.0)) if norm > 0 else np.nan


_LITE, _ORDER = "arXiv:2503.11910", "arXiv:2606.06342"
for _measure in (
    Measure("rtd-lite", "RTD-lite", "divergence", pair_distances, rtd_lite, _LITE),
    Measure("max-rtd-lite", "Max-RTD-lite", "divergence", pair_distances, max_rtd_lite, _ORDER),
    Measure("srtd-lite", "SRTD-lite", "divergence", pair_distances, srtd_lite, _ORDER),
    Measure("nts-e", "NTS-E", "similarity", pair_distances, nts_e, _ORDER, -1.0, 1.0),
    Measure("nts-m", "NTS-M", "similarity", pair_distances, nts_m, _ORDER, -1.0, 1.0),
):
    MEASURES.add(_measure.name, _measure)
