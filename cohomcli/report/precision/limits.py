"""What a precision report does not mean, said with the result's own numbers."""

from __future__ import annotations

from cohomcli.precision.result import PrecisionResult
from cohomcli.report.names import clean, count, number, percent
from cohomcli.report.precision.look import WEIGHT_ONLY


def limits(result: PrecisionResult) -> list[str]:
    """What the figures do not mean, said only where it applies."""
    sentences = [
        _statuses(result),
        _of_inputs(result),
        _of_semantics(result),
        _of_first_order(result),
        _of_h1(result),
        _of_admissibility(result),
        _of_infeasible(result),
        _of_bytes(result),
        _of_curvature(result),
    ]
    return [sentence for sentence in sentences if sentence]


def _statuses(result: PrecisionResult) -> str:
    bound = ""
    if result.lower_bound is not None:
        bound = (
            " The lower bound on the cost is proved in the model: for the stated costs and scores, not for your "
            "hardware."
        )
    return (
        f"The predicted error is estimated, to first order, from {count(result.n_probes, 'random adjoint')} per input. "
        f"The errors on calibration and held-out inputs are measured; they bound nothing on other inputs.{bound}"
    )


def _of_inputs(result: PrecisionResult) -> str:
    risk = ""
    if "fp16" in result.formats:
        risk = ": an activation larger than any seen, by more than the headroom, overflows where it is stored in fp16"
    checks = f"{'checks' if result.n_heldout == 1 else 'check'} the plan, and no more than that"
    if not result.n_heldout:
        checks = "check the plan: it is measured on the inputs that it was made on"
    ranges = f" (ranges: and by {count(result.n_surveyed, 'more input')})" if result.n_surveyed else ""
    return (
        f"What the model will see is represented by {count(result.n_calibration, 'calibration input')}{ranges}{risk}. "
        f"{count(result.n_heldout, 'held-out input')} {checks}."
    )


def _of_semantics(result: PrecisionResult) -> str:
    return (
        f"Errors hold under the execution semantics {clean(result.semantics, 20)!r}: every operation computes in at "
        "least float32 from its stored operands and is rounded once, when its result is stored. A fused kernel that "
        "keeps results in registers rounds less often; a unit that accumulates in 16 bits rounds more often. Both give "
        "other errors."
    )


def _of_first_order(result: PrecisionResult) -> str:
    known = {f.format: f.curvature_ratio for f in result.sheaf.formats if f.curvature_ratio is not None}
    if not known:
        return ""
    worst = max(known, key=lambda f: known[f])
    return (
        f"First order leaves curvature out. By the antithetic test its part is largest in {clean(worst, 12)}: the even "
        f"part of the response is {percent(known[worst])} of the odd part. A discrete decision (argmax, routing) that "
        "flips is not in any of these numbers."
    )


def _of_h1(result: PrecisionResult) -> str:
    sheaf = result.sheaf
    if not sheaf.h1:
        return "H^1 = 0 proves nothing about uniform formats either: what decides is whether S_f is empty."
    return (
        f"H^1 of dimension {sheaf.h1:,} proves nothing. Each of the graph's {count(sheaf.betti1, 'independent loop')} "
        f"(residual connections make them) counts once for each of {count(len(sheaf.formats), 'format')}, whatever is "
        "admissible; every obstruction after the first of a component adds one more. What decides whether a uniform "
        "format is possible is whether its obstruction set S_f is empty."
    )


def _of_admissibility(result: PrecisionResult) -> str:
    if not any(found.ops for found in result.obstructions if found.format not in WEIGHT_ONLY):
        return ""
    return (
        "An obstruction set is relative to the admissible sets, which come from measured ranges with headroom and from "
        "rules: 'impossible' means that a stored value would leave the format's range, not that no algorithm could "
        "compute the outputs in that format. Code that keeps the inside of such a module in fp32, as many "
        "implementations of RMSNorm do, has removed the obstruction by hand."
    )


def _of_infeasible(result: PrecisionResult) -> str:
    if not result.infeasible:
        return ""
    return (
        "Infeasible is a statement about the model of cost and error: no choice among these formats brings the sum of "
        "the estimated scores under the budget. A measured error may still be smaller, and another algorithm, format "
        "or granularity may meet epsilon."
    )


def _of_bytes(result: PrecisionResult) -> str:
    autocast = result.bytes_autocast
    return (
        "Bytes are what one forward pass moves when nothing is fused: every weight once, every result written once and "
        f"read by each of its readers, every conversion. They are not latency. Autocast's {number(autocast.n_casts)} "
        "conversions are counted the same way; its own cache and fused kernels change what a GPU really moves."
    )


def _of_curvature(result: PrecisionResult) -> str:
    if not result.curvature:
        return ""
    return (
        "Curvature decides no format. It says how far first order can be trusted; how many bits an operation needs is "
        "decided by its conditioning and by how much the rest of the network amplifies its error."
    )
