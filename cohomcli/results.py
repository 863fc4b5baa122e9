"""The result of one command as reports and run folders see it: one entry per model and data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cohomcli.data.spec import TextSample
from cohomcli.models.spec import LanguageMetrics, ModelInfo
from cohomcli.precision.result import PrecisionResult, WeightsResult
from cohomcli.topology.figures import RepresentationResult
from cohomcli.topology.results import TopologyResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohomcli.circuits.results import CircuitResult
    from cohomcli.pruning.results import PruningResult
    from cohomcli.training.ablation_results import AblationResult
    from cohomcli.training.generated import GenerationResult
    from cohomcli.training.results import TrainingResult

SCHEMA = "cohom.results/1"

ClaimStatus = Literal["proved", "proved-in-model", "estimated", "measured"]


@dataclass(frozen=True)
class Claim:
    """One statement and how it is known; `certificate` names the file of a proved one."""

    text: str
    status: ClaimStatus
    certificate: str | None = None


@dataclass(frozen=True)
class Entry:
    """The analysis of one model on one data set, or the error that ended it (`error` set, `info` may be None).

    `precision` stands alone or beside `topology`; it needs no texts: without them `dataset` is "" and `sample` None.
    `precision_reason` says why a plan that was asked for could not be made.
    `activations` holds the pooled activations by layer until they are written; `activations_sha256` is that file's.
    """

    model: str
    dataset: str
    info: ModelInfo | None = None
    sample: TextSample | None = None
    pooling: str = ""
    n_tokens: int = 0
    n_truncated: int = 0
    metrics: LanguageMetrics | None = None
    metrics_reason: str = ""
    topology: TopologyResult | None = None
    representation: RepresentationResult | None = None
    claims: tuple[Claim, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    error: str = ""
    precision: PrecisionResult | WeightsResult | None = None
    precision_reason: str = ""
    training: TrainingResult | None = None
    ablation: AblationResult | None = None
    pruning: PruningResult | None = None
    circuits: CircuitResult | None = None
    generation: GenerationResult | None = None
    activations: Mapping[str, NDArray[Any]] | None = field(default=None, compare=False, repr=False)
    activations_sha256: str = ""

    @property
    def status(self) -> Literal["ok", "failed"]:
        """Whether the analysis of this entry finished."""
        return "failed" if self.error else "ok"
