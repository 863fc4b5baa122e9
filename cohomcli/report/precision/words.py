"""The sentences of a precision report: what is seen, said only where the result at hand says it."""

from __future__ import annotations

from cohomcli.precision.result import ObstructionSet, PrecisionResult
from cohomcli.report.names import clean, count, listing, number, percent, ratio, size
from cohomcli.report.precision.digest import (
    Way,
    by_place_and_op,
    formats_of,
    numel,
    obstructed_places,
    of_kind,
    shown_obstructions,
    ways,
)
from cohomcli.report.precision.look import WEIGHT_ONLY, in_order, norm_name

_LEVEL = {"op": "one per tensor", "module": "one per module", "block": "one per repeated block"}
_NOTHING = 1e-2  # a smaller share of the plan's error is not worth a factor
_OBJECTIVE = {
    "bytes": "the bytes that one forward pass moves",
    "weights": "the bytes of the weights",
    "cost table": "the cost by the given table",
}


def seen(result: PrecisionResult, model: str) -> list[str]:
    """What the result shows, sentence by sentence."""
    sentences = [
        verdict(result),
        _prediction(result),
        _setting(result, model),
        _shares(result),
        _bytes(result),
        _everywhere(result),
        *(_obstruction(result, found) for found in result.obstructions if found.ops),
        _against(result),
        _contributors(result),
        _bound(result),
    ]
    return [sentence for sentence in sentences if sentence]


def _setting(result: PrecisionResult, model: str) -> str:
    fixed = f"; {count(result.n_fixed, 'other tensor')} (integers, masks, inputs, constants)" if result.n_fixed else ""
    keep = f"{fixed} {'keeps its' if result.n_fixed == 1 else 'keep their'} type" if fixed else ""
    aim = _OBJECTIVE.get(result.objective, clean(result.objective, 40))
    return (
        f"{clean(model, 60)} stores the results of {count(result.n_ops, 'operation')} and "
        f"{count(result.n_weights, 'weight tensor')} ({count(result.n_parameters, 'parameter')}){keep}. Each was to "
        f"take {alternatives(result.formats)}, {_LEVEL.get(result.level, clean(result.level, 20))}, so that {aim} "
        f"{'are' if result.objective != 'cost table' else 'is'} least."
    )


def alternatives(formats: tuple[str, ...]) -> str:
    """`fp32, bf16 or fp16`."""
    names = [clean(f, 12) for f in in_order(formats)]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def verdict(result: PrecisionResult) -> str:
    """Whether the tolerance is met, by what, and why not."""
    epsilon, name = number(result.epsilon, 3), norm_name(result.norm)
    on = f"{result.measured_on} that played no part in the plan" if result.n_heldout else result.measured_on
    against = f"the {name} of the outputs against float64 is"
    why = f" Why: {clean(result.reason, 400).rstrip('.')}." if result.reason else ""
    if result.measured_error is None:
        state = "gives outputs that are not finite" if result.plan else "was not found"
        text = f"Not met: a plan for epsilon = {epsilon} {state}.{why}"
    elif result.met:
        share = f" ({percent(result.measured_error / result.epsilon)} of it)" if result.epsilon else ""
        text = f"Met: on {on} {against} {number(result.measured_error, 3)}, within epsilon = {epsilon}{share}."
    else:
        text = f"Not met: on {on} {against} {number(result.measured_error, 3)}, above epsilon = {epsilon}.{why}"
    if result.n_overflows:
        its = "its format" if result.n_overflows == 1 else "their formats"
        text += f" On them {count(result.n_overflows, 'tensor')} left the range of {its}."
    return text + (_infeasible(result) if result.infeasible else "")


def _infeasible(result: PrecisionResult) -> str:
    best = " The plan shown is the most accurate one there is by the same scores." if result.plan else ""
    return (
        " That no assignment of these formats can be predicted to meet epsilon is proved in the model: for the scores "
        f"and admissible sets computed here.{best}"
    )


def _prediction(result: PrecisionResult) -> str:
    if result.predicted_error is None:
        return ""
    text = f"Predicted before measuring: {number(result.predicted_error, 3)}"
    if result.calibration_error:
        factor = ratio(result.predicted_error / result.calibration_error)
        text += (
            f"; measured on the {count(result.n_calibration, 'calibration input')}: "
            f"{number(result.calibration_error, 3)} (predicted / measured: {factor})"
        )
    return f"{text}. It took {count(len(result.rounds), 'round')} of solving and emulating."


def _shares(result: PrecisionResult) -> str:
    if not result.plan:
        return ""
    parts = []
    ops, weights = of_kind(result.plan, "op"), of_kind(result.plan, "weight")
    if ops:
        parts.append(f"Of the operations {_percentages(formats_of(ops))}")
    if weights:
        lead = "of the weights, by parameters," if ops else "Of the weights, by parameters,"
        parts.append(f"{lead} {_percentages(formats_of(weights, numel))}")
    return f"{'; '.join(parts)}."


def _percentages(counts: dict[str, int]) -> str:
    total = sum(counts.values()) or 1
    if len(counts) == 1:
        return f"all are in {clean(next(iter(counts)), 12)}"
    most = sorted(in_order(counts), key=lambda f: -counts[f])
    return listing(f"{percent(counts[f] / total)} are in {clean(f, 12)}" for f in most)


def _bytes(result: PrecisionResult) -> str:
    plan = result.bytes_plan
    if plan is None:
        return ""
    others = {"fp32": result.bytes_fp32, "uniform fp16": result.bytes_fp16, "autocast fp16": result.bytes_autocast}
    shares = [f"{percent(plan.total / o.total)} of {name} ({size(o.total)})" for name, o in others.items() if o.total]
    casts = count(plan.n_casts, "cast")
    moved = f" and {casts} {size(plan.casts)}" if plan.n_casts else "; there are no casts"
    return (
        f"One forward pass under the plan moves {size(plan.total)}: {listing(shares)}. The weights take "
        f"{size(plan.weights)}, results and reads {size(plan.activations)}{moved}."
    )


def _everywhere(result: PrecisionResult) -> str:
    """The formats without an obstruction, and what they were measured to do uniformly."""
    free = [found.format for found in result.obstructions if not found.ops]
    if not free:
        return ""
    measured = {way.key: way for way in ways(result)}
    uniform = [(fmt, way) for fmt in in_order(free) if (way := measured.get(f"uniform-{fmt}")) is not None]
    each = listing(f"{clean(fmt, 12)} {_error_words(way)}" for fmt, way in uniform if way.ran)
    names = listing(clean(fmt, 12) for fmt in in_order(free))
    be = "is" if len(free) == 1 else "are"
    ran = f" Run uniformly, {each}." if each else ""
    return f"{names} {be} admissible everywhere, so as far as ranges go uniform use is possible.{ran}"


def _obstruction(result: PrecisionResult, found: ObstructionSet) -> str:
    fmt = clean(found.format, 12)
    measured = {way.key: way for way in ways(result)}.get(f"uniform-{found.format}")
    if found.format in WEIGHT_ONLY:
        n = len(shown_obstructions(found))
        return f"{fmt}: for weights only; {count(n, 'weight is', 'weights are')} not admissible." if n else ""
    places = obstructed_places(found, result.plan)
    where = listing((f"{len(p.ops):,} {clean(p.op, 30)} in {clean(p.place, 50)}" for p in places), most=4)
    kinds = [sum(op.kind == kind for op in found.ops) for kind in ("op", "weight")]
    what = listing(count(n, name) for n, name in zip(kinds, ("operation", "weight"), strict=True) if n)
    impossible = f"so uniform {fmt} is impossible relative to the admissible sets"
    return f"{fmt}: inadmissible at {what}, {impossible}{_errs(measured)}. Where: {where}."


def _errs(way: Way | None) -> str:
    """What the uniform format was measured to do, as a relative clause."""
    if way is None or not way.ran:
        return ""
    return f"; run all the same it {_error_words(way)}"


def _error_words(way: Way) -> str:
    over = f" after {count(way.n_overflows, 'overflow')}" if way.n_overflows else ""
    return f"gives outputs that are not finite{over}" if way.error is None else f"errs by {number(way.error, 3)}{over}"


def _against(result: PrecisionResult) -> str:
    mine = result.bytes_plan
    told = {f"uniform-{found.format}" for found in result.obstructions}
    ran = [w for w in ways(result) if w.key != "plan" and w.ran]
    others = [w for w in ran if w.key not in told]
    if mine is None or not others:
        return ""
    return f"On the same held-out inputs: {'; '.join(_other(result, w) for w in others)}."


def _other(result: PrecisionResult, way: Way) -> str:
    text = f"{clean(way.label, 60)} {_error_words(way)}"
    if way.error and result.measured_error and way.error / result.measured_error > _NOTHING:
        text += f" ({ratio(way.error / result.measured_error)} the plan's)"
    if way.bytes is not None and result.bytes_plan is not None and result.bytes_plan.total:
        text += f" with {ratio(way.bytes.total / result.bytes_plan.total)} its bytes"
    return text


def _contributors(result: PrecisionResult) -> str:
    groups = sorted(by_place_and_op(result.plan), key=lambda g: -g.share)[:3]
    groups = [g for g in groups if g.share > 0]
    if not groups:
        return ""
    each = listing(f"{clean(g.key[1], 30)} in {clean(g.key[0], 60)} ({percent(g.share)})" for g in groups)
    return (
        f"Most of the predicted squared error comes from {each}."
        if sum(g.share for g in groups) > 0.5
        else (f"The predicted squared error is spread out; the largest parts are {each}.")
    )


def _bound(result: PrecisionResult) -> str:
    if result.lower_bound is None or result.gap is None:
        return ""
    unit = size if result.objective in ("bytes", "weights") else number
    if result.gap == 0:
        saved = "no other assignment costs less"
    else:
        share = percent(result.gap)
        part = f"less than {share[1:]}" if share.startswith("<") else f"at most {share}"
        saved = f"{part} of its cost could be saved by any other assignment"
    bound = f"{unit(result.lower_bound)} is a lower bound (proved in the model, in exact rationals)"
    return f"The solver's last solution: {saved}; {bound}."
