"""The kept Vietoris-Rips engines behind one signature, the choice between them, and the check of the young one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from cohomcli.errors import UsageError
from cohomcli.registry import Registry
from cohomcli.topology.results import Array

# An engine takes (condensed float64 distances, maxdim >= 1, threshold) and returns, for each dimension 1..maxdim, a
# (k, 2) array of births and deaths (inf: alive at the threshold), homology over Z/2, values rounded to float32.
ENGINES = Registry("engine")
H0_ENGINE = "single-linkage"
MAXDIM = 2


@dataclass(frozen=True)
class EngineChoice:
    """The engine that will run, and why it is not the preferred one (`note`, empty when it is)."""

    name: str
    note: str = ""


def redzed(distances: Array, maxdim: int, threshold: float) -> list[Array]:
    """RedZeD (Kapulkin, Kershaw, arXiv:2606.06310); releases the interpreter lock while it works."""
    from redzed_tda import rips

    diagrams: list[Array] = rips(distances, maxdim=maxdim, threshold=threshold)
    return diagrams[1:]


def ripser(distances: Array, maxdim: int, threshold: float) -> list[Array]:
    """Ripser (Bauer 2021, doi:10.1007/s41468-021-00071-5) through ripser.py; holds the interpreter lock."""
    from ripser import ripser as run

    diagrams: list[Array] = run(squareform(distances), distance_matrix=True, maxdim=maxdim, thresh=threshold)["dgms"]
    return diagrams[1:]


ENGINES.add("redzed", redzed)
ENGINES.add("ripser", ripser)


def choose_engine(name: str, maxdim: int) -> EngineChoice:
    """The engine for `name` ("auto" or an entry of ENGINES) and homology up to `maxdim`.

    "auto" takes RedZeD when `redzed_fault` finds nothing, else Ripser with a note. H0 alone is single linkage whatever
    the name. Raises UsageError for an unknown name, and for RedZeD by name where it has a fault.
    """
    if name != "auto":
        ENGINES.get(name)
    if maxdim == 0:
        return EngineChoice(H0_ENGINE)
    if name == "ripser" or not (fault := redzed_fault()):
        return EngineChoice("redzed" if name == "auto" else name)
    if name == "auto":
        return EngineChoice("ripser", f"{fault}: Ripser is used instead, which is slower")
    raise UsageError(f"engine {name!r}: {fault}", "use --engine ripser")


@cache
def redzed_fault() -> str:
    """Why RedZeD cannot be trusted in this process; empty when it reproduces the reference barcode, as it should.

    The comparison is against stored numbers because importing ripser costs over two CPU seconds, more than a whole
    analysis; that both ripser and GUDHI give these numbers is checked by the tests.
    """
    try:
        diagrams = redzed(pdist(reference_cloud()), 2, np.inf)
    except ImportError as error:
        return f"redzed-tda cannot be imported ({error})"
    if squared_bars(diagrams[0]) == REFERENCE_H1 and squared_bars(diagrams[1]) == REFERENCE_H2:
        return ""
    return "redzed-tda failed its self-check"


def reference_cloud() -> Array:
    """60 points of {0..5}^4, 54 of them distinct, with 65 different lengths among 1,770: ties and duplicates abound."""
    state, coordinates = 2, []
    for _ in range(55 * 4):
        state = (1103515245 * state + 12345) % 2**31  # the C standard's example generator
        coordinates.append((state >> 16) % 6)
    points = np.array(coordinates, dtype=np.float64).reshape(55, 4)
    return np.concatenate([points, points[:5]])


def squared_bars(diagram: NDArray[np.floating]) -> list[tuple[int, int]]:
    """The bars of a diagram of integer points as sorted squared lengths, which are exact integers."""
    return sorted((round(float(b) ** 2), round(float(d) ** 2)) for b, d in diagram if np.isfinite(d) and d > b)


REFERENCE_H1 = [
    *((4, 6), (5, 10), (6, 7), (6, 7), (6, 7), (6, 9), (6, 10), (6, 14)),
    *((7, 9), (7, 9), (7, 9), (8, 9), (9, 10), (9, 10), (10, 11), (10, 14)),
]
REFERENCE_H2 = [(12, 13), (14, 15), (14, 15), (14, 18), (17, 18)]
