"""The collision obstruction: two inputs look alike once a cut of the graph is stored, and their outputs differ.

Let a set C of tensors separate the inputs from the outputs: everything the outputs need beyond C is the same for both
inputs. If every tensor of C, computed exactly and rounded once to its format, is the same at x and x', then whatever
is computed from the stored tensors is the same too. An answer y has |y - f(x)| + |y - f(x')| >= |f(x) - f(x')|, so one
of both errors is at least half of it; in relative L2, at least ||f(x) - f(x')|| / (||f(x)|| + ||f(x')||).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from cohomcli.verify.arrays import balls, float_down, float_up
from cohomcli.verify.document import Context, Rejected
from cohomcli.verify.enclose import enclose
from cohomcli.verify.errors_of import Ends, apart, square_sum
from cohomcli.verify.kinds.common import NORM_WORDS, Kind, agree, exceeds, input_id, stored_in, subject, where
from cohomcli.verify.rounding import UNIT, fraction_down, nearest_even, number, sqrt_down, storage_format


def statement(document: Mapping[str, Any]) -> str:
    """The sentence."""
    claim = document["claim"]
    cut = ", ".join(f"{part['name']} in {stored_in(part['format'])}" for part in claim["cut"])
    return (
        f"{subject(document)} at the inputs {input_id(document, 'first')} and {input_id(document, 'second')}: once "
        f"{cut} is stored (rounded once), both are the same, and no algorithm that goes on from there has a "
        f"{NORM_WORDS[claim['norm']]} of {claim['epsilon']!r} or less in {where(claim)} at both of them: one of the "
        f"two errors is at least {claim['error']!r}."
    )


def check(context: Context) -> None:
    """The cut separates, its stored tensors agree, and the outputs differ by more than twice epsilon."""
    claim = context.claim
    first, second = context.tensors("first"), context.tensors("second")
    cut = _cut(claim)
    (name,) = claim["outputs"]
    _check_separation(context, set(cut), name, first, second)
    wanted = set(cut) | {context.graph.outputs[name]}
    runs = [
        enclose(context.graph, context.known(x), wanted, context.precision, context.progress).values
        for x in (first, second)
    ]
    for slot, fmt in cut.items():
        stored = [stored_alike(ends_of(run[slot]), fmt) for run in runs]
        if stored[0] is None or stored[0] != stored[1]:
            raise Rejected(f"slot {slot} is not proved to be stored alike at both inputs")
    outputs = [ends_of(run[context.graph.outputs[name]]) for run in runs]
    error = error_at_one(claim["norm"], outputs[0], outputs[1], claim["entry"])
    agree(claim["error"], error, "the error")
    exceeds(error, claim["epsilon"])


def _cut(claim: Mapping[str, Any]) -> dict[int, str]:
    cut: dict[int, str] = {}
    for part in claim["cut"]:
        if set(part) != {"slot", "name", "format"} or type(part["slot"]) is not int or part["slot"] in cut:
            raise Rejected("malformed cut")
        storage_format(part["format"])
        cut[part["slot"]] = part["format"]
    if not cut:
        raise Rejected("an empty cut")
    return cut


def _check_separation(context: Context, cut: set[int], output: str, first: Any, second: Any) -> None:
    graph = context.graph
    if output not in graph.outputs:
        raise Rejected("an output that the model has not")
    slots = set(graph.arguments) | set(graph.held) | {step.out for step in graph.steps}
    if not cut <= slots:
        raise Rejected("the cut names a slot that the graph has not")
    for name in graph.sources({graph.outputs[output]}, cut):
        same = first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes()
        if not same or first[name].shape != second[name].shape:
            raise Rejected(f"the cut does not separate input {name!r} from the output")


def ends_of(value: Any) -> Ends:
    """Lower and upper doubles of every entry, flat."""
    return [(float_down(b), float_up(b)) for b in balls(value).ravel().tolist()]


def stored_alike(ends: Ends, fmt: str) -> list[int] | None:
    """What every entry is stored as, in units; None where an enclosure does not decide it, or it overflows."""
    target, found = storage_format(fmt), []
    for low, high in ends:
        if not (math.isfinite(low) and math.isfinite(high)):
            return None
        rounded = nearest_even(low, target)
        if rounded is None or nearest_even(high, target) != rounded:
            return None
        found.append(rounded)
    return found


def error_at_one(norm: str, first: Ends, second: Ends, entry: int | None) -> float:
    """A lower bound of the larger of two errors of one answer to both.

    Raises:
        Rejected: a norm without such a bound, or no such entry.
    """
    if not all(math.isfinite(end) for pair in (*first, *second) for end in pair):
        raise Rejected("an enclosure is not finite")
    gaps = [apart(one, other) for one, other in zip(first, second, strict=True)]
    if norm == "max-abs":
        if type(entry) is not int or not 0 <= entry < len(gaps):
            raise Rejected("there is no such entry")
        return fraction_down(number(gaps[entry]) / 2)
    if norm == "rel-l2" and entry is None:
        sizes = [math.nextafter(sqrt_down(_squared(square_sum(ends))), math.inf) for ends in (first, second)]
        between = sqrt_down(_squared(sum(g * g for g in gaps)))
        return fraction_down(Fraction(between) / (Fraction(sizes[0]) + Fraction(sizes[1])))
    raise Rejected(f"no collision obstruction in the norm {norm!r}")


def _squared(n: int) -> Fraction:
    """n squared units as a rational number."""
    return Fraction(n, 1 << 2 * UNIT)


KEYS = frozenset({"cut", "norm", "epsilon", "error", "outputs", "entry"})
KIND = Kind("proved", KEYS, statement, check)
