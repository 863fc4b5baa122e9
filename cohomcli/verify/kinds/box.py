"""An upper bound on a box: for every input in it, a plan's rounding error is at most what is stated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cohomcli.verify.arrays import flint, float_up
from cohomcli.verify.box import KERNEL_ULPS, MOST_SPLITS, Box, bound
from cohomcli.verify.document import Context, Rejected
from cohomcli.verify.kinds.common import Kind, agree, input_id, real, subject


def statement(document: Mapping[str, Any]) -> str:
    """The sentence."""
    claim = document["claim"]
    return (
        f"{subject(document)} on the box {input_id(document, 'centre')} +- {input_id(document, 'radius')}, run in "
        f"{claim['plan']} (semantics 'store', float32 sums in any order, elementwise functions within "
        f"{KERNEL_ULPS} unit roundoffs of float32 of |x| + |f(x)|): no entry of output {claim['output']!r} errs "
        f"by more than {claim['bound']!r}, whatever the input in the box."
    )


def check(context: Context) -> None:
    """Bound the error again; the stated bound may be larger, never smaller."""
    claim = context.claim
    if claim["output"] not in context.graph.outputs:
        raise Rejected("an output that the model has not")
    if type(claim["splits"]) is not int or not 0 <= claim["splits"] <= MOST_SPLITS:
        raise Rejected("no sensible number of splits")
    found = recompute(context)
    if not found <= real(claim["bound"], "the bound"):
        raise Rejected(f"the bound is stated as {claim['bound']!r} and found to be {found!r}")
    formats = set(claim["formats"].values())
    agree(claim["plan"], f"uniform {formats.pop()}" if len(formats) == 1 else "the plan", "the plan's name")


def recompute(context: Context) -> float:
    """The largest bound over the entries of the output, rounded up."""
    claim, graph = context.claim, context.graph
    centre, radius = context.tensors("centre"), context.tensors("radius")
    if set(centre) != set(graph.arguments.values()) or set(radius) != set(centre):
        raise Rejected("the box is not one for this model's inputs")
    for name in centre:
        if centre[name].dtype != np.float64 or radius[name].dtype != np.float64 or not (radius[name] >= 0).all():
            raise Rejected("a box has float64 centres and radii of at least zero")
    slots = {name: slot for slot, name in graph.arguments.items()}
    box = Box({slots[n]: c for n, c in centre.items()}, {slots[n]: r for n, r in radius.items()})
    formats = {int(slot): str(fmt) for slot, fmt in claim["formats"].items()}
    held = {slot: context.weights[name] for slot, name in graph.held.items()}
    with flint().ctx.workprec(context.precision):
        found = bound(graph, held, formats, box, graph.outputs[claim["output"]], claim["splits"])
    return max(float_up(value) for value in found)


KEYS = frozenset({"plan", "formats", "output", "bound", "splits"})
KIND = Kind("proved", KEYS, statement, check)
