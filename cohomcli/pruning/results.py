"""What pruning gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from cohomcli.models.pairs import PairReport
from cohomcli.pruning.shape import TopologyChange


@dataclass(frozen=True)
class PrunedMap:
    """One matrix: its share of zeros, the lambda used, and the relative loss E|Wx - Vx|^2 / E|Wx|^2 on calibration.

    With a `rank` it is a product of two, and `sparsity` the share of parameters that those have fewer.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    shrink: float
    error: float
    rank: int | None = None


@dataclass(frozen=True)
class Perplexity:
    """Before and after on one set of texts, and how many tokens were predicted; with a recovery `pruned` is after the
    last pruning and `after` after the last recovery.
    """

    dataset: str
    before: float
    after: float
    n_predictions: int
    domain: str = "in"
    pruned: float | None = None


@dataclass(frozen=True)
class SweepPoint:
    """One sparsity of a sweep: drift behind the last block, and perplexity on every evaluation set, in order."""

    pattern: str
    sparsity: float
    drift: float
    perplexity: tuple[float, ...]


@dataclass(frozen=True)
class Pass:
    """One of several passes: what was to be gone after it, what was, and perplexity on every evaluation set, in order,
    after pruning and after recovery (empty: there was none).
    """

    pattern: str
    sparsity: float
    pruned: tuple[float, ...]
    recovered: tuple[float, ...] = ()


@dataclass(frozen=True)
class Recovery:
    """Fine-tuning of `steps` updates after every pass, on `n_tokens` predicted tokens in all."""

    steps: int
    learning_rate: float
    n_tokens: int


@dataclass(frozen=True)
class Factored:
    """The model with products of two maps, as `load_factored` gives it: its parameters, and the largest difference of
    its logits from the dense model's on calibration text.
    """

    n_parameters: int
    largest_difference: float


@dataclass(frozen=True)
class PruningResult:
    """`drift` c_n = E|h - h'|^2 / E|h|^2 after every block that is left, on the calibration texts; h dense, h' pruned.

    `blocks_gone` are the numbers of whole blocks that went, `exactness` the pairs of maps before and after. `passes`
    are empty where there was one without recovery; `maps` are those of the last. `factored` is of the pattern rank.
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
    passes: tuple[Pass, ...] = ()
    recovery: Recovery | None = None
    factored: Factored | None = None
    topology: TopologyChange | None = None
