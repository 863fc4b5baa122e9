"""What a user can ask of a precision analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cohomcli.precision.costs import Objective
from cohomcli.precision.granularity import Keep, Level
from cohomcli.precision.spec import ErrorNorm

DEFAULT_FORMATS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class PrecisionOptions:
    """`epsilon` bounds the output error in `norm`; the plan minimises `objective` over `formats` at `level`.

    `keep` rules and the hardware `target` restrict formats; `headroom` is the range left free above what calibration
    saw. `n_probes` random adjoints per input score the ops, at most `max_rounds` closed-loop rounds correct the plan,
    `time_limit` seconds bound each solve as the last resort. `n_pareto` points of the trade-off are solved, curvature
    is computed for the `n_curvature` largest contributors.
    """

    epsilon: float = 1e-2
    norm: ErrorNorm = "rel-l2"
    formats: tuple[str, ...] = DEFAULT_FORMATS
    objective: Objective = "bytes"
    level: Level = "op"
    keep: tuple[Keep, ...] = ()
    target: str | Mapping[str, tuple[str, ...]] | None = None
    headroom: float = 2.0
    n_probes: int = 16
    max_rounds: int = 3
    time_limit: float = 60.0
    n_pareto: int = 9
    n_curvature: int = 12
    baselines: bool = True
    seed: int = 0
