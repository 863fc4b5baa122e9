"""What an ablation gives back: a row per arm and per comparison; readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["helps", "no evidence", "hurts", "reference"]
Metric = Literal["loss", "accuracy"]


@dataclass(frozen=True)
class CellResult:
    """One training run: an arm at a weight and a seed. `phase` "tune" has no `test` figures.

    `loss` in nats per token asked for, `accuracy` a share; `diverged` runs have none.
    """

    phase: Literal["tune", "final"]
    arm: str
    weight: float | None
    seed: int
    steps: int
    diverged: bool = False
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True)
class ArmResult:
    """One arm on the test split, over the seeds.

    `values` are the metric by seed, `mean` their mean; `difference` is the mean over seeds of (arm minus the plain arm
    of the same seed), so that signs follow the metric, with its bootstrap `interval`; `p_value` is adjusted for all
    comparisons of the run. `diverged` counts seeds whose training did not end; then there is no comparison.
    """

    arm: str
    weight: float | None
    steps: int
    mean: float | None
    values: tuple[float | None, ...]
    loss: float | None
    accuracy: float | None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    verdict: Verdict = "reference"
    diverged: int = 0


@dataclass(frozen=True)
class PairedComparison:
    """`arm` against `against`, paired by seed.

    `interval` is the bootstrap's at the level that allows for all comparisons; `p_value` the paired t test's and
    `p_adjusted` Holm's; `detectable` the smallest mean difference that would have been called at this spread.
    """

    arm: str
    against: str
    difference: float
    interval: tuple[float, float]
    p_value: float
    p_adjusted: float
    detectable: float
    verdict: Verdict


@dataclass(frozen=True)
class TunedWeight:
    """A weight that was tried: mean of the metric on the validation split over the tuning seeds; None: it diverged."""

    arm: str
    weight: float
    validation: float | None
    chosen: bool


@dataclass(frozen=True)
class AblationResult:
    """A finished ablation. `metric` was fixed beforehand, `compute_ratio` is the cost of a step with our losses.

    `level` is the confidence of the whole family of comparisons. `seconds` is CPU time and belongs into the manifest.
    """

    task: str
    about: str
    metric: Metric
    level: float
    seeds: tuple[int, ...]
    tune_seeds: tuple[int, ...]
    sizes: tuple[int, int, int]
    n_parameters: int
    compute_ratio: float
    arms: tuple[ArmResult, ...]
    comparisons: tuple[PairedComparison, ...]
    tuning: tuple[TunedWeight, ...]
    seconds: float = field(default=0.0, compare=False)
