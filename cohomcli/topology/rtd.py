"""Representation topology divergence and its kin: homology of the difference between two Rips filtrations.

RTD: Barannikov, Trofimov, Balabin, Burnaev, "Representation Topology Divergence", ICML 2022 (arXiv:2201.00058).
Max-RTD: Trofimov et al., "Learning Topology-Preserving Data Representations", ICLR 2023 (arXiv:2302.00136).
SRTD: Wang, Hu, "Symmetric Divergence and Normalized Similarity", TMLR 2026 (arXiv:2606.06342).
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import squareform

from cohomcli.topology.measure import MEASURES, Measure
from cohomcli.topology.pairdistances import PairDistances, pair_distances
from cohomcli.topology.persistence import rips
from cohomcli.topology.results import Array, Diagram


def cross_barcode(inner: Array, outer: Array, engine: str = "auto") -> Diagram:
    """H1 of the cone of Rips(`inner`) -> Rips(`outer`), both condensed on the same n points, `outer` <= `inner`.

    The cone is realised as the Rips complex of 2n vertices with distances [[0, inner], [inner, outer]]: a copy of the
    points shrunk to one, glued to the filtration of `outer` as that of `inner` grows (Barannikov et al. 2022, sect. 2).
    Bars are the components of `inner` that `outer` has merged already, and the loops of `outer` that `inner` lacks.
    """
    within, between = squareform(outer), squareform(inner)
    n = len(within)
    auxiliary = np.zeros((2 * n, 2 * n))
    auxiliary[n:, :n] = between
    auxiliary[:n, n:] = between
    auxiliary[n:, n:] = within
    return rips(squareform(auxiliary, checks=False), 1, engine)[1]


def directed_rtd(w: Array, v: Array) -> float:
    """RTD_1(w, v) of condensed distances: the total bar length between Rips(w) and Rips(min(w, v))."""
    return _total(cross_barcode(w, np.minimum(w, v)))


def directed_max_rtd(w: Array, v: Array) -> float:
    """Max-RTD_1(w, v) of condensed distances: the total bar length between Rips(max(w, v)) and Rips(w)."""
    return _total(cross_barcode(np.maximum(w, v), w))


def rtd(a: PairDistances, b: PairDistances) -> float:
    """(RTD_1(w, v) + RTD_1(v, w)) / 2 (Barannikov et al. 2022)."""
    if not (a.defined and b.defined):
        return np.nan
    return (directed_rtd(a.condensed, b.condensed) + directed_rtd(b.condensed, a.condensed)) / 2


def max_rtd(a: PairDistances, b: PairDistances) -> float:
    """(Max-RTD_1(w, v) + Max-RTD_1(v, w)) / 2 (Trofimov et al. 2023; Wang, Hu 2026, definition C.1)."""
    if not (a.defined and b.defined):
        return np.nan
    return (directed_max_rtd(a.condensed, b.condensed) + directed_max_rtd(b.condensed, a.condensed)) / 2


def srtd(a: PairDistances, b: PairDistances) -> float:
    """SRTD_1(w, v): the total bar length between Rips(max(w, v)) and Rips(min(w, v)) (Wang, Hu 2026, def. 3.1)."""
    if not (a.defined and b.defined):
        return np.nan
    w, v = a.condensed, b.condensed
    return _total(cross_barcode(np.maximum(w, v), np.minimum(w, v)))


def _total(diagram: Diagram) -> float:
    return float((diagram.pairs[:, 1] - diagram.pairs[:, 0]).sum())


MEASURES.add("rtd", Measure("rtd", "RTD", "divergence", pair_distances, rtd, "arXiv:2201.00058"))
MEASURES.add("max-rtd", Measure("max-rtd", "Max-RTD", "divergence", pair_distances, max_rtd, "arXiv:2302.00136"))
MEASURES.add("srtd", Measure("srtd", "SRTD", "divergence", pair_distances, srtd, "arXiv:2606.06342"))
