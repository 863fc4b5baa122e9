"""A precision result on disk: its section of `results.json`, and the whole of it read back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cohomcli.precision.result import BytesRow, PrecisionResult, WeightsResult

PrecisionOutcome = PrecisionResult | WeightsResult
_PLAN_KEYS = ("op", "target", "module", "kind", "format", "reason", "share")


def precision_document(result: PrecisionOutcome) -> dict[str, Any]:
    """The section `precision` as docs/results.md describes it; plain JSON values."""
    if isinstance(result, WeightsResult):
        return {"kind": result.kind, "met": False} | asdict(result)
    sheaf = result.sheaf
    return {
        "kind": result.kind,
        "epsilon": result.epsilon,
        "norm": result.norm,
        "semantics": result.semantics,
        "formats": list(result.formats),
        "objective": result.objective,
        "granularity": result.level,
        "inputs": result.inputs,
        "n_calibration": result.n_calibration,
        "n_heldout": result.n_heldout,
        "n_surveyed": result.n_surveyed,
        "n_overflows": result.n_overflows,
        "outputs": list(result.outputs),
        "n_ops": result.n_ops,
        "n_weights": result.n_weights,
        "n_fixed": result.n_fixed,
        "n_parameters": result.n_parameters,
        "n_probes": result.n_probes,
        "met": result.met,
        "reason": result.reason,
        "infeasible": result.infeasible,
        "predicted_error": result.predicted_error,
        "calibration_error": result.calibration_error,
        "measured_error": result.measured_error,
        "fp32_error": result.fp32_error,
        "rounds": len(result.rounds),
        "history": [asdict(r) for r in result.rounds],
        "h0_dim": sheaf.h0,
        "h1_dim": sheaf.h1,
        "euler": sheaf.euler,
        "sheaf": asdict(sheaf),
        "obstructions": [
            {"format": o.format, "count": len(o.ops), "ops": [asdict(op) for op in o.ops]} for o in result.obstructions
        ],
        "bytes": {
            "plan": _total(result.bytes_plan),
            "fp32": result.bytes_fp32.total,
            "fp16": result.bytes_fp16.total,
            "autocast": result.bytes_autocast.total,
        },
        "bytes_detail": {
            "plan": asdict(result.bytes_plan) if result.bytes_plan else None,
            "fp32": asdict(result.bytes_fp32),
            "fp16": asdict(result.bytes_fp16),
            "autocast": asdict(result.bytes_autocast),
        },
        "share_of_ops": _shares(result, "op"),
        "share_of_weights": _shares(result, "weight"),
        "lower_bound": result.lower_bound,
        "gap": result.gap,
        "plan": [{key: getattr(row, key) for key in _PLAN_KEYS} for row in result.plan],
        "baselines": [asdict(b) for b in result.baselines],
        "pareto": [asdict(p) for p in result.pareto],
        "curvature": [asdict(c) for c in result.curvature],
        "balance": asdict(result.balance) if result.balance else None,
        "claims": [asdict(r) | {"status": r.status} for r in result.refutations],
        "exports": [asdict(e) for e in result.exports],
        "notes": list(result.notes),
    }


def _total(row: BytesRow | None) -> int | None:
    return None if row is None else row.total


def _shares(result: PrecisionResult, kind: str) -> dict[str, float]:
    """The share of ops, or of the weights' elements, in every format; formats that are not used have 0."""
    sizes = dict.fromkeys(result.formats, 0)
    for row in result.plan:
        if row.kind == kind:
            elements = 1
            for size in row.shape if kind == "weight" else ():
                elements *= size
            sizes[row.format] += elements
    total = sum(sizes.values())
    return {fmt: size / total if total else 0.0 for fmt, size in sizes.items()}


def read_precision(document: dict[str, Any]) -> PrecisionOutcome:
    """The result that `{"kind": ..., "result": ...}` holds.

    Raises:
        ValueError: it is damaged or of another version.
    """
    from pydantic import TypeAdapter

    kinds: dict[str, Any] = {"program": PrecisionResult, "weights": WeightsResult}
    found: PrecisionOutcome = TypeAdapter(kinds[document["kind"]]).validate_python(document["result"])
    return found
