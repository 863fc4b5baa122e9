"""What is reported of one pair of consecutive maps; no heavy import, because reports read it back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairReport:
    """One pair of maps, B after A, on data; the figures are those of `cohomcli.nn.exactness.Exactness`.

    `kappa` and `eta` are its complex and its homology defect. A trained network is no complex: kappa near 1 says that
    B reads what A writes, and `free_rank` counts the directions that A writes and B does not see.
    """

    name: str
    rank_image: int
    rank_composite: int
    free_rank: int
    kappa: float
    eta: float
    kernel_share: float
    read_alignment: float
    harmonic: int
