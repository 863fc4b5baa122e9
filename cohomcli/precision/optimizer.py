"""`SheafPrecisionOptimizer`: the analysis as two calls on a module, under the field names of the source system.

The names are kept so that code written for the source system reads on; what stands behind them is measured, estimated
or proved as each docstring says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cohomcli.precision.analysis import Analysis, analyse
from cohomcli.precision.formats import get_format
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.result import Baseline, CurvatureRow, PlanRow, PrecisionResult
from cohomcli.precision.spec import ErrorNorm
from cohomcli.precision.summary import Inputs

WIDE_FORMATS = ("fp64", "fp32", "bf16", "fp16")
MEGABYTE = 1e6
PROVED_GAP = 1e-3
MOST_CURVATURES = 64  # ops whose curvature `analyze` computes, the largest contributors first


@dataclass(frozen=True)
class LayerPrecision:
    """The formats of one module's ops and weights.

    `precision_bits` and `dtype` are those of its widest format (`formats` has all), `curvature` the largest measured
    one of its ops (None when not computed), `obstruction` says that some format is inadmissible in it, `reason` why its
    widest op or weight has its format.
    """

    precision_bits: int
    dtype: torch.dtype
    curvature: float | None
    obstruction: bool
    reason: str
    formats: tuple[str, ...]


@dataclass(frozen=True)
class OptimizationResult:
    """What `analyze` found, in the source system's words; `analysis` holds everything else.

    `h0_dim`: (component, format) pairs of the label sheaf that are admissible throughout; 0 means that no uniform
    format is. `h1_dim`: its first cohomology, which alone proves nothing. `precision_map`: module path to its formats
    (ops outside any module under ""). `total_memory_mb`: weights and the peak of activations under the plan, 10^6
    bytes. `is_optimal`: a checked lower bound proves the plan's cost within 0.1 % of the least one for the cost and
    error model. `impossibility_proof`: which ops refuse which uniform format and why, relative to the ranges measured;
    empty when every format can be uniform. `met`: whether the target is kept on the inputs measured.
    """

    h0_dim: int
    h1_dim: int
    precision_map: dict[str, LayerPrecision]
    total_memory_mb: float
    is_optimal: bool
    impossibility_proof: str
    met: bool
    measured_error: float | None
    analysis: Analysis


class SheafPrecisionOptimizer:
    """Plans formats for `model` so that its outputs err by at most `target_accuracy` in `norm`.

    >>> optimizer = SheafPrecisionOptimizer(model, target_accuracy=1e-3)        # doctest: +SKIP
    >>> optimizer.analyze(torch.randn(1, 784)).precision_map["0"].dtype         # doctest: +SKIP
    torch.float16

    Calls are independent: nothing is kept but the model, which is not changed. It is analysed in evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module,
        target_accuracy: float = 1e-6,
        norm: ErrorNorm = "rel-l2",
        formats: Sequence[str] = WIDE_FORMATS,
    ) -> None:
        self.model = model
        self.options = PrecisionOptions(
            epsilon=target_accuracy, norm=norm, formats=tuple(formats), n_curvature=MOST_CURVATURES
        )

    def analyze(self, sample_input: Any, heldout: Sequence[Any] = ()) -> OptimizationResult:
        """Plan on `sample_input` (a tensor, a tuple of arguments or a dict of keyword arguments).

        The error is measured on `heldout`, inputs of the same shapes; on the sample itself when there are none, which
        the result's notes say.

        Raises:
            UsageError: inputs or formats do not fit.
            AnalysisIncomplete: the model cannot be captured or is not finite.
        """
        calibration = [_call(sample_input)]
        others = [_call(x) for x in heldout] or calibration
        with _evaluating(self.model):
            found = analyse(self.model, Inputs(calibration, others, "sample input"), self.options)
        return _named(found)

    def compare_with_amp(self, sample_input: Any) -> dict[str, Any]:
        """The plan beside `torch.autocast` to fp16 and bf16 on the CPU, run and measured on the sample.

        Megabytes (10^6 bytes) are weights loaded, activations written and read, and casts of one pass. Autocast is
        given its casts for free, the plan pays for its own: `amp_with_casts_mb` has them, as kernels that are not fused
        move them. `sheaf_vs_amp_improvement` is the share saved against fp16 autocast, errors are None where not
        finite.

        Raises:
            As `analyze`.
        """
        result = self.analyze(sample_input).analysis.result
        amp = {b.name: b for b in result.baselines}
        half = amp["autocast-fp16"]
        ours = _megabytes(result)
        theirs = (half.bytes.total - half.bytes.casts) / MEGABYTE if half.bytes else None
        return {
            "sheaf_memory_mb": ours,
            "amp_memory_mb": theirs,
            "amp_with_casts_mb": half.bytes.total / MEGABYTE if half.bytes else None,
            "fp32_memory_mb": result.bytes_fp32.total / MEGABYTE,
            "sheaf_vs_amp_improvement": None if not theirs else 1.0 - ours / theirs,
            "sheaf_error": result.measured_error,
            "amp_error": half.error,
            "amp_bf16_error": _error(amp.get("autocast-bf16")),
            "met": result.met,
        }


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """`model.eval()`, and every module's own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _call(sample: Any) -> Any:
    """A lone tensor as the only positional argument."""
    return (sample,) if isinstance(sample, torch.Tensor) else sample


def _error(found: Baseline | None) -> float | None:
    return None if found is None else found.error


def _megabytes(result: PrecisionResult) -> float:
    return (result.bytes_plan or result.bytes_fp32).total / MEGABYTE


def _named(found: Analysis) -> OptimizationResult:
    result = found.result
    plan = result.bytes_plan or result.bytes_fp32
    return OptimizationResult(
        h0_dim=result.sheaf.h0,
        h1_dim=result.sheaf.h1,
        precision_map=precision_map(result),
        total_memory_mb=plan.peak_memory / MEGABYTE,
        is_optimal=result.gap is not None and result.gap <= PROVED_GAP,
        impossibility_proof=impossibility(result),
        met=result.met,
        measured_error=result.measured_error,
        analysis=found,
    )


def precision_map(result: PrecisionResult) -> dict[str, LayerPrecision]:
    """Per module path the formats of its ops and weights."""
    places: dict[str, list[PlanRow]] = {}
    for row in result.plan:
        places.setdefault(row.module, []).append(row)
    refused = {entry.op for found in result.obstructions for entry in found.ops}
    curvature: dict[str, list[CurvatureRow]] = {}
    for found in result.curvature:
        curvature.setdefault(found.module, []).append(found)
    return {place: _layer(rows, refused, curvature.get(place, ())) for place, rows in places.items()}


def _layer(rows: Sequence[PlanRow], refused: set[str], curvature: Sequence[CurvatureRow]) -> LayerPrecision:
    widest = max(rows, key=lambda row: get_format(row.format).n_bytes)
    fmt = get_format(widest.format)
    return LayerPrecision(
        precision_bits=8 * fmt.n_bytes,
        dtype=getattr(torch, fmt.dtype),
        curvature=max((c.measured for c in curvature if c.measured is not None), default=None),
        obstruction=any(row.op in refused for row in rows),
        reason=widest.reason,
        formats=tuple(dict.fromkeys(row.format for row in rows)),
    )


def impossibility(result: PrecisionResult) -> str:
    """Why which uniform formats are impossible, one line per format and op; empty when all are possible.

    The statement is relative to the admissible sets, which are measured on the calibration inputs.
    """
    parts = []
    for found in result.obstructions:
        if found.ops:
            parts.append(
                f"Uniform {found.format} is impossible for the ranges measured: "
                f"{len(found.ops)} of {result.sheaf.n_vertices} ops and weights refuse it."
            )
            parts += [f"  {entry.reason}" for entry in found.ops]
    return "\n".join(parts)
