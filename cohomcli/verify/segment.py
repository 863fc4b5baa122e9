"""Derivatives along a segment, enclosed: the ball interpreter on truncated power series instead of single balls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cohomcli.verify.arrays import Array, apply, flint
from cohomcli.verify.enclose import evaluate
from cohomcli.verify.graph import PlainGraph

ORDER = 3  # value, first derivative, half the second


def along(
    graph: PlainGraph,
    held: Mapping[int, Any],
    start: Mapping[int, Array],
    direction: Mapping[int, Array],
    window: tuple[Any, Any],
) -> dict[int, Array]:
    """Balls that hold f(t), f'(t) and f''(t) for all t in the window, f the graph on start + t direction.

    `window` are balls (middle, radius); returns the output slots' arrays of triples (value, first, second).

    Raises:
        Undecided: a kink or a comparison inside the window.
        Unsupported: as `enclose`.
    """
    module = flint()
    t = module.arb(window[0], window[1])
    moving = {
        slot: apply(lambda a, d: module.arb_series([a + t * d, d], prec=ORDER), start[slot], direction[slot])
        for slot in start
    }
    wanted = set(graph.outputs.values())
    values = evaluate(graph, dict(held) | moving, wanted, int(module.ctx.prec))
    return {slot: apply(_triple, values[slot]) for slot in wanted}


def _triple(x: Any) -> Any:
    """Value and derivatives of a series; of a constant, zeros behind it."""
    if isinstance(x, flint().arb):
        return x, flint().arb(0), flint().arb(0)
    return x[0], x[1], 2 * x[2]
