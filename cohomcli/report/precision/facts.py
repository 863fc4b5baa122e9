"""The labelled values of a precision report: the headline, how it was measured, and what its words mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from cohomcli.precision.result import BytesRow, PrecisionResult, WeightsResult
from cohomcli.report.document import Fact
from cohomcli.report.names import DASH, clean, count, listing, number, percent, size
from cohomcli.report.precision.digest import formats_of, numel, of_kind
from cohomcli.report.precision.look import FORMAT, counted, in_order, norm_meaning, norm_name


def precision_headline(result: PrecisionResult) -> list[Fact]:
    """The figures at the top; a missing one says why."""
    return [
        _tolerance(result),
        _heldout(result),
        _predicted(result),
        *_byte_facts(result),
        *_format_facts(result),
        _rounds(result),
        _gap(result),
    ]


def _tolerance(result: PrecisionResult) -> Fact:
    proved = "; no assignment is predicted to meet it (proved in the model)" if result.infeasible else ""
    what = f"epsilon = {number(result.epsilon, 3)}, {norm_name(result.norm)}{proved}"
    return Fact("tolerance", "met" if result.met else "not met", what)


def _heldout(result: PrecisionResult) -> Fact:
    fp32 = "not finite" if result.fp32_error is None else number(result.fp32_error, 2)
    on = f"measured on {result.measured_on} against float64; fp32 everywhere: {fp32}"
    if not result.plan:
        return Fact("held-out error", DASH, clean(result.reason, 200))
    if result.measured_error is None:
        return Fact("held-out error", "not finite", on)
    return Fact("held-out error", number(result.measured_error, 3), on)


def _predicted(result: PrecisionResult) -> Fact:
    if result.predicted_error is None:
        return Fact("predicted error", DASH, "there is no plan")
    measured = (
        "" if result.calibration_error is None else f"; calibration: {number(result.calibration_error, 3)} measured"
    )
    return Fact("predicted error", number(result.predicted_error, 3), f"estimated{measured}")


def _byte_facts(result: PrecisionResult) -> list[Fact]:
    plan = result.bytes_plan
    if plan is None:
        return [Fact("bytes of one pass", DASH, f"there is no plan; fp32 moves {size(result.bytes_fp32.total)}")]
    what = f"weights {size(plan.weights)}, activations {size(plan.activations)}, casts {size(plan.casts)}"
    return [
        Fact("bytes of one pass", size(plan.total), what),
        _share_of(plan, result.bytes_fp32, "fp32"),
        _share_of(plan, result.bytes_fp16, "uniform fp16"),
        _share_of(plan, result.bytes_autocast, "autocast fp16"),
    ]


def _share_of(plan: BytesRow, other: BytesRow, name: str) -> Fact:
    share = percent(plan.total / other.total) if other.total else DASH
    return Fact(f"bytes against {name}", share, f"of {size(other.total)}, counted the same way")


def _format_facts(result: PrecisionResult) -> list[Fact]:
    ops, weights = of_kind(result.plan, "op"), of_kind(result.plan, "weight")
    facts = []
    if ops:
        facts.append(Fact("operations", _leading(formats_of(ops)), counted(formats_of(ops))))
    if weights:
        shares = formats_of(weights, numel)
        tensors = f"by parameters; tensors: {counted(formats_of(weights))}"
        facts.append(Fact("weights", _leading(shares), tensors))
    return facts


def _leading(counts: Counter[str]) -> str:
    """The share of the most frequent format."""
    most = max(in_order(counts), key=lambda f: counts[f])
    return f"{percent(counts[most] / (sum(counts.values()) or 1))} {clean(most, 12)}"


def _rounds(result: PrecisionResult) -> Fact:
    return Fact("closed-loop rounds", str(len(result.rounds)) if result.rounds else "none", "solve, emulate, rescale")


def _gap(result: PrecisionResult) -> Fact:
    if result.gap is None:
        why = "no plan is predicted to meet epsilon" if result.infeasible else "no bound was computed"
        return Fact("optimality gap", DASH, why)
    return Fact("optimality gap", percent(result.gap), "at most; proved in the model")


def precision_method(result: PrecisionResult | WeightsResult | None) -> list[Fact]:
    """What was analysed and how."""
    if result is None:
        return []
    names = listing(clean(f, 12) for f in in_order(result.formats))
    if isinstance(result, WeightsResult):
        return [
            Fact("precision analysis", "weights only", clean(result.why, 300)),
            Fact("formats", names, "each weight tensor rounded once to each of them"),
        ]
    inputs = (
        f"{result.n_calibration:,} calibration, {result.n_surveyed:,} more to judge unseen ones by, "
        f"{result.n_heldout:,} held out"
    )
    n_all = result.n_ops + result.n_weights + result.n_fixed
    graph = (
        f"views contracted; {count(result.n_ops, 'operation')} and {count(result.n_weights, 'weight')} with a format "
        f"choose, {result.n_fixed:,} with a fixed type"
    )
    return [
        Fact("inputs", clean(result.inputs, 300) or DASH, inputs),
        Fact("outputs", listing(clean(name, 40) for name in result.outputs), "what the error is measured on"),
        Fact("error", norm_name(result.norm), norm_meaning(result.norm)),
        Fact("graph", f"{n_all:,} vertices, {result.n_edges:,} edges", graph),
        Fact("formats", names, f"chosen per {clean(result.level, 20)}"),
        Fact("objective", clean(result.objective, 40), "minimised under the tolerance"),
        Fact("semantics", clean(result.semantics, 40), "computed in at least float32, rounded once where stored"),
        Fact("sensitivity", count(result.n_probes, "random adjoint"), "per scored input, to first order"),
    ]


_WORDS = (
    Fact("format", "how the numbers of a tensor are stored: significand bits, exponent range, bytes"),
    Fact("epsilon", "the largest output error that is tolerated, in the named norm, against the float64 outputs"),
    Fact("held-out error", "measured on inputs that were used for no decision"),
    Fact("predicted error", "the root of the summed scores of all stores: first order, estimated from random adjoints"),
    Fact("share", "the part of the predicted squared error that one store makes; a single one may be negative"),
    Fact("obstruction set S_f", "the operations and weights where format f is inadmissible, each with its reason"),
    Fact("label sheaf", "the admissible formats of every vertex as stalks, all formats as stalks of the edges"),
    Fact("h0", "how many (component, format) pairs are admissible everywhere: the uniform formats there are"),
    Fact("h1", "loops of the graph, once per format, and obstructions beyond the first of each component"),
    Fact("chi", "h0 - h1, the Euler characteristic"),
    Fact("island", "a connected region that admits a format: it can run in it without a cast inside"),
    Fact("cast", "a conversion of a stored tensor to the format that a reader computes in"),
    Fact("overflow", "a value beyond the largest number of its format, detected before the store"),
    Fact("curvature", "sup ||D^2 f[h, h]|| over unit h: the size of an operation's response that is not linear"),
    Fact("conditioning", "how many times larger the relative error of a result is than that of its operands"),
    Fact("optimality gap", "by how much the plan's cost exceeds a proved lower bound, relative to the plan's cost"),
    Fact("proved in the model", "proved for the stated costs, scores and admissible sets, in exact rationals"),
)  # fmt: skip


def precision_glossary(results: Iterable[PrecisionResult | WeightsResult | None]) -> list[Fact]:
    """What the words and format names of precision reports mean; empty without one."""
    found = [result for result in results if result is not None]
    formats = [Fact(f, FORMAT[f]) for f in in_order(f for result in found for f in result.formats) if f in FORMAT]
    programs = any(isinstance(result, PrecisionResult) for result in found)
    return [*formats, *(_WORDS if programs else _WORDS[:1] if found else ())]
