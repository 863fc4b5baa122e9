"""The curvature bound that is true: how many bits of an input any algorithm needs where a function is nowhere flat.

Let f be twice differentiable along a segment of length D with |f''| >= kappa > 0, and let an algorithm know its place
on the segment only up to a cell of a grid of spacing h <= D / 6, the grid in any position. Then its worst error is at
least kappa D h / 8: with h = 2^-p D, an error of at most epsilon needs p >= log2(kappa D^2 / (8 epsilon)) bits
(proof in docs/claims.md). Where |f'| >= s on a piece of length D / n, a cell of spacing h <= D / (2 n) lies in it, and
the worst error is at least s h / 2: p >= log2(s D / (2 epsilon)), mostly the stronger of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cohomcli.verify.arrays import flint, float_down
from cohomcli.verify.document import Context, Rejected
from cohomcli.verify.kinds.common import Kind, agree, input_id, real, subject
from cohomcli.verify.segment import along

MOST_PIECES = 4096


def statement(document: Mapping[str, Any]) -> str:
    """The sentence."""
    claim = document["claim"]
    slope = (
        "" if claim["slope_bits"] is None else f" (by slopes of at least {claim['slope']!r}: {claim['slope_bits']!r})"
    )
    return (
        f"{subject(document)} on the segment of length {claim['length']!r} from {input_id(document, 'start')} along "
        f"{input_id(document, 'direction')}: the second derivative of entry {claim['entry']} of output "
        f"{claim['output']!r} is at least {claim['kappa']!r} in magnitude, so that any algorithm with an error of at "
        f"most {claim['epsilon']!r} needs at least {claim['bits']!r} bits of the place on the segment{slope}."
    )


def check(context: Context) -> None:
    """Enclose the derivatives on every piece again."""
    claim = context.claim
    if claim["output"] not in context.graph.outputs:
        raise Rejected("an output that the model has not")
    if type(claim["pieces"]) is not int or not 1 <= claim["pieces"] <= MOST_PIECES:
        raise Rejected("no sensible number of pieces")
    length, epsilon = real(claim["length"], "the length"), real(claim["epsilon"], "epsilon")
    if length <= 0 or epsilon <= 0:
        raise Rejected("length and epsilon are positive")
    kappa, slope = recompute(context, claim["output"], claim["entry"], length, claim["pieces"])
    agree(claim["kappa"], kappa, "the second derivative")
    agree(claim["slope"], slope, "the slope")
    bits, slope_bits = bits_of(kappa, slope, length, epsilon, claim["pieces"])
    agree(claim["bits"], bits, "the number of bits")
    agree(claim["slope_bits"], slope_bits, "the number of bits by slopes")


def recompute(context: Context, output: str, entry: int, length: float, pieces: int) -> tuple[float, float]:
    """Lower bounds of |f''| on the whole segment and of the largest |f'| on a piece.

    Raises:
        Rejected: the second derivative is not bounded away from zero, or there is no such entry.
    """
    graph = context.graph
    slots = {name: slot for slot, name in graph.arguments.items()}
    start = {slots[n]: v for n, v in context.tensors("start").items()}
    direction = {slots[n]: v for n, v in context.tensors("direction").items()}
    if set(start) != set(slots.values()) or set(direction) != set(start):
        raise Rejected("the segment is not one of this model's inputs")
    held = {slot: context.weights[name] for slot, name in graph.held.items()}
    return derivatives_below(graph, held, start, direction, (output, entry, length, pieces), context.precision)


def derivatives_below(
    graph: Any, held: Any, start: Any, direction: Any, place: tuple[str, int, float, int], bits: int
) -> tuple[float, float]:
    """As `recompute`, from the parts; `place` is (output, entry, length, pieces)."""
    output, entry, length, pieces = place
    slot = graph.outputs[output]
    kappa, slope, signs = math.inf, 0.0, set()
    module = flint()
    with module.ctx.workprec(bits):
        half = module.arb(length) / (2 * pieces)
        for i in range(pieces):
            found = along(graph, held, start, direction, ((2 * i + 1) * half, half))[slot].ravel()
            if type(entry) is not int or not 0 <= entry < len(found):
                raise Rejected("there is no such entry")
            _, first, second = found[entry]
            if not (second > 0 or second < 0):
                raise Rejected("the second derivative is not proved to keep away from zero")
            signs.add(bool(second > 0))
            kappa = min(kappa, float_down(abs(second)))
            slope = max(slope, max(float_down(abs(first)), 0.0) if first > 0 or first < 0 else 0.0)
    if len(signs) != 1:
        raise Rejected("the second derivative changes sign")
    return kappa, slope


def bits_of(kappa: float, slope: float, length: float, epsilon: float, pieces: int) -> tuple[float, float | None]:
    """Both numbers of bits, rounded down; the one by slopes is None where its condition on h fails.

    Raises:
        Rejected: h would be more than D / 6: the bound says nothing for this epsilon.
    """
    arb = flint().arb
    with flint().ctx.workprec(128):
        bits = float_down((arb(kappa) * arb(length) ** 2 / (8 * arb(epsilon))).log() / arb(2).log())
        by_slope = -math.inf
        if slope > 0:
            by_slope = float_down((arb(slope) * arb(length) / (2 * arb(epsilon))).log() / arb(2).log())
    if not bits >= math.log2(6) + 1e-9:
        raise Rejected("for this epsilon the bound says nothing")
    return bits, by_slope if by_slope >= math.log2(2 * pieces) + 1e-9 else None


KEYS = frozenset({"output", "entry", "length", "pieces", "kappa", "slope", "epsilon", "bits", "slope_bits"})
KIND = Kind("proved", KEYS, statement, check)
