"""`CriticalSequenceDetector`: which parts of a model a behaviour cannot do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from cohomcli.circuits import scores
from cohomcli.circuits.batches import Tokens
from cohomcli.circuits.channels import frozen
from cohomcli.circuits.discover import bench_of, check_options, graph_of
from cohomcli.circuits.results import CircuitOptions
from cohomcli.errors import UsageError
from cohomcli.models.probe import find_layout
from cohomcli.models.wiring import wire
from cohomcli.progress import silent


@dataclass(frozen=True)
class Critical:
    """What was found: `effects` of every component as shares of the gap between clean and corrupt prompts, `critical`
    the names at or above the threshold, largest first, and `critical_count` their number over all calls so far.
    """

    effects: dict[str, float]
    critical: tuple[str, ...]
    critical_count: int


@dataclass
class CriticalSequenceDetector:
    """Calls a component critical when exchanging it moves the metric by at least `threshold` of the whole behaviour.

    The source's class of this name compared the norm of one activation with a threshold, which says nothing of what the
    activation is for. This one measures effects, as `cohom circuits` does: `level` heads, neurons or edges; `method`
    integrated, attribution or exact; `metric` logit or probability.

    Raises:
        UsageError: a threshold that is not positive, or an unknown name.
    """

    threshold: float = 0.1
    level: str = "heads"
    method: str = "integrated"
    metric: str = "logit"
    detected_count: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise UsageError(f"threshold {self.threshold} must be positive", "0.1 is a tenth of the behaviour")
        check_options(self._options)

    @property
    def _options(self) -> CircuitOptions:
        return CircuitOptions(level=self.level, method=self.method, metric=self.metric)

    def __call__(self, model: nn.Module, pairs: Sequence[Tokens]) -> tuple[bool, Critical]:
        """Whether any component of the decoder `model` is critical to what `pairs` show, and the effects of all.

        Raises:
            InputRefused: an architecture whose heads are not known.
            AnalysisIncomplete: the model does not do what the pairs show.
        """
        stack = find_layout(model).stacks[0]
        with frozen(model):
            graph = graph_of(model, stack, wire(model, stack), self._options)
            bench = bench_of(model, graph, pairs, self._options)
            method = cast(scores.Method, scores.METHODS.get(self.method))
            shares = (method(bench, self._options, silent).mean(0) / bench.gap).tolist()
        effects = dict(zip(graph.components, shares, strict=True))
        found = sorted(
            (name for name in effects if abs(effects[name]) >= self.threshold), key=lambda n: -abs(effects[n])
        )
        self.detected_count += len(found)
        return bool(found), Critical(effects, tuple(found), self.detected_count)
