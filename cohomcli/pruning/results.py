"""What pruning gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from cohomcli.models.pairs import PairReport


@dataclass(frozen=True)
class PrunedMap:
    """One matrix: its share of zeros, the lambda used, and the relative loss E|Wx - Vx|^2 / E|Wx|^2 on calibration."""

    name: str
    shape: tuple[int, int]
    sparsity: float
    shrink: float
    error: float


@dataclass(frozen=True)
class Perplexity:
    """Before and after on one set of texts, and how many tokens were predicted."""

    dataset: str
    before: float
    after: float
    n_predictions: int
    domain: str = "in"


@dataclass(frozen=True)
class SweepPoint:
    """One sparsity of a sweep: drift behind the last block, and perplexity on every evaluation set, in order."""

    pattern: str
    sparsity: float
    drift: float
    perplexity: tuple[float, ...]


@dataclass(frozen=True)
class PruningResult:
    """`drift` c_n = E|h - h'|^2 / E|h|^2 after every block that is left, on the calibration texts; h dense, h' pruned.

    `blocks_gone` are the numbers of whole blocks that went, `exactness` the pairs of maps before and after.
    """

    method: str
    pattern: str
    sparsity: float
    n_calibration_tokens: int
    maps: tuple[PrunedMap, ...]
    drift: tuple[float, ...]
    n_parameters: tuple[int, int]
    n_nonzero: tuple[int, int]
    seconds: float = field(default=0.0, compare=False)
    perplexity: tuple[Perplexity, ...] = ()
    blocks_gone: tuple[int, ...] = ()
    sweep: tuple[SweepPoint, ...] = ()
    exactness: tuple[tuple[PairReport, ...], tuple[PairReport, ...]] = ((), ())
