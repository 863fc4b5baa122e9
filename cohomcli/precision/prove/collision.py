"""The search for two inputs that a stored cut cannot tell apart and whose outputs differ.

At the inputs themselves the search is exact to first order: inside one rounding cell of the format, each entry goes to
the end that its gradient asks for. Behind a later cut the largest step along the gradient that leaves every stored
entry of the cut unchanged is found by bisection. Only real inputs can collide; token ids are told apart by any cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cohomcli.precision.capture import Captured
from cohomcli.precision.formats import get_format
from cohomcli.precision.program import call
from cohomcli.precision.prove.lowering import as_array
from cohomcli.precision.prove.package import Package
from cohomcli.precision.prove.witness import differentiable
from cohomcli.precision.result import Refutation
from cohomcli.precision.rounding import round_to
from cohomcli.verify.enclose import enclose
from cohomcli.verify.kinds.collision import ends_of, error_at_one

if TYPE_CHECKING:
    from cohomcli.precision.prove.refute import RefuteOptions

MOST_CUTS = 24
MOST_CUT_ENTRIES = 1 << 14
_INWARD = 1 - 2.0**-20  # stay this far inside a cell, so that the enclosure decides


@dataclass(frozen=True)
class _Pair:
    """Two points, the cut's slots, and what the collision is estimated to prove."""

    first: dict[int, torch.Tensor]
    second: dict[int, torch.Tensor]
    cut: tuple[int, ...]
    output: str
    entry: int | None
    estimate: float


def collisions(
    captured: Captured, inputs: Sequence[Any], fmt: str, options: RefuteOptions, package: Package
) -> Refutation:
    """The best collision of a format over the tried cuts, proved if it exceeds epsilon."""

    def missing(why: str) -> Refutation:
        text = f"no two inputs found that {fmt} cannot tell apart behind a cut and whose outputs differ enough: {why}"
        return Refutation(fmt, "collision", text, options.epsilon, options.norm, None)

    if options.norm == "kl":
        return missing("there is no such bound in KL divergence")
    if not all(a.dtype.is_floating_point for a in captured.program.arguments):
        return missing("the inputs are discrete")
    pairs = [pair for x in inputs for pair in _pairs(captured, x, fmt, options.norm)]
    if not pairs:
        return missing("no cut to try")
    best = max(pairs, key=lambda pair: pair.estimate)
    if best.estimate <= options.epsilon:
        return missing(f"the best is estimated to prove {best.estimate:.3g}")
    return _prove(captured, best, fmt, options, package) or missing("the enclosure does not decide it")


def _prove(captured: Captured, pair: _Pair, fmt: str, options: RefuteOptions, package: Package) -> Refutation | None:
    graph = package.graph
    slot = graph.outputs[pair.output]
    held = {h.slot: as_array(h.tensor) for h in captured.program.held}
    points = [{s: as_array(v) for s, v in point.items()} for point in (pair.first, pair.second)]
    runs = [enclose(graph, held | point, {slot, *pair.cut}) for point in points]
    first, second = (ends_of(run.values[slot]) for run in runs)
    error = error_at_one(options.norm, first, second, pair.entry)
    if error <= options.epsilon:
        return None
    names = {h.slot: h.name for h in captured.program.held} | {a.slot: a.name for a in captured.program.arguments}
    names |= {i.result: i.name for i in captured.program.instructions}
    claim = {
        "cut": [{"slot": s, "name": names[s], "format": fmt} for s in pair.cut],
        "norm": options.norm,
        "epsilon": options.epsilon,
        "error": error,
        "outputs": [pair.output],
        "entry": pair.entry,
    }
    tensors = {
        f"{which}:{graph.arguments[s]}": value
        for which, point in zip(("first", "second"), points, strict=True)
        for s, value in point.items()
    }
    precision = max(run.precision for run in runs)
    written = package.write("collision", f"collision-{fmt}", claim, tensors, precision)
    if written is None:
        return None
    return Refutation(fmt, "collision", written.statement, options.epsilon, options.norm, error, written.path.name)


# --- candidates -------------------------------------------------------------------------------------------------------


def _pairs(captured: Captured, x: Any, fmt: str, norm: str) -> list[_Pair]:
    """One pair per cut: the arguments themselves, and every single op that separates them from the outputs."""
    bound = {slot: value.double() for slot, value in captured.bind(x).items()}
    leaves = {slot: value.clone().requires_grad_() for slot, value in bound.items()}
    outputs = differentiable(captured, leaves)
    found = []
    for (name, _), y in zip(captured.program.outputs, outputs, strict=True):
        if not y.requires_grad:
            continue
        entry = int(y.detach().abs().argmax())
        target = y.flatten()[entry] if norm == "max-abs" else y.square().sum() / 2
        grads = torch.autograd.grad(target, list(leaves.values()), retain_graph=True, allow_unused=True)
        slope = {s: torch.zeros_like(v) if g is None else g for (s, v), g in zip(bound.items(), grads, strict=True)}
        place = (name, entry if norm == "max-abs" else None)
        found.append(_at_inputs(captured, bound, slope, fmt, norm, place))
        for cut in _separating(captured)[:MOST_CUTS]:
            pair = _behind(captured, bound, slope, fmt, norm, place, cut)
            found += [] if pair is None else [pair]
    return found


def _at_inputs(
    captured: Captured, x: dict[int, torch.Tensor], slope: dict[int, torch.Tensor], fmt: str, norm: str, place: Any
) -> _Pair:
    """Each entry at the end of its rounding cell that raises the output, and at the one that lowers it."""
    high, low = {}, {}
    for slot, value in x.items():
        centre, reach = cell(value, fmt)
        step = torch.sign(slope[slot]) * reach * _INWARD
        high[slot], low[slot] = centre + step, centre - step
    return _pair(captured, low, high, tuple(x), norm, place)


def cell(x: torch.Tensor, fmt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The format's number nearest x and a distance within which everything rounds to it, both float64."""
    target = get_format(fmt)
    centre = round_to(x.double(), fmt)
    exponent = torch.frexp(centre.abs())[1] - 1
    # At a power of two the cell is narrower below: the spacing there is half.
    exponent = torch.where(torch.frexp(centre.abs())[0] == 0.5, exponent - 1, exponent)
    exponent = torch.where(centre == 0, torch.full_like(exponent, target.emin), exponent).clamp(min=target.emin)
    half = torch.ldexp(torch.ones_like(centre), exponent - target.significand_bits)
    return centre, half


def _behind(
    captured: Captured,
    x: dict[int, torch.Tensor],
    slope: dict[int, torch.Tensor],
    fmt: str,
    norm: str,
    place: Any,
    cut: int,
) -> _Pair | None:
    """The farthest points x - s d and x + t d, d the gradient, that leave the stored cut as it is at x."""
    size = max(float(g.abs().max()) for g in slope.values())
    if size == 0.0:
        return None

    def at(t: float) -> dict[int, torch.Tensor]:
        return {slot: value + t / size * slope[slot] for slot, value in x.items()}

    def stored(t: float) -> torch.Tensor:
        return round_to(_value(captured, at(t), cut).double(), fmt)

    reference = stored(0.0)
    if not bool(torch.isfinite(reference).all()) or reference.numel() > MOST_CUT_ENTRIES:
        return None
    ends = [_farthest(lambda t, s=sign: torch.equal(stored(s * t), reference)) * sign for sign in (-1.0, 1.0)]
    return _pair(captured, at(ends[0]), at(ends[1]), (cut,), norm, place)


def _farthest(same: Any) -> float:
    """The largest step found by doubling and bisection that keeps `same`, a little less to be safe."""
    low, high = 0.0, 2.0**-30
    while high < 2.0**10 and same(high):
        low, high = high, high * 2
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if same(middle) else (low, middle)
    return low * _INWARD


def _value(captured: Captured, x: dict[int, torch.Tensor], slot: int) -> torch.Tensor:
    with torch.no_grad():
        values: dict[int, Any] = {h.slot: _wide(h.tensor.detach()) for h in captured.program.held} | dict(x)
        for instruction in captured.program.instructions:
            values[instruction.result] = call(instruction, values, torch.float64)
            if instruction.result == slot:
                break
    found: torch.Tensor = values[slot]
    return found


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _pair(
    captured: Captured, low: dict[int, torch.Tensor], high: dict[int, torch.Tensor], cut: Any, norm: str, place: Any
) -> _Pair:
    name, entry = place
    slot = dict(captured.program.outputs)[name]
    a, b = (_value(captured, point, slot).flatten() for point in (low, high))
    if norm == "max-abs":
        estimate = float((a[entry] - b[entry]).abs()) / 2
    else:
        estimate = float((a - b).norm() / (a.norm() + b.norm()).clamp_min(1e-300))
    return _Pair(low, high, cut, name, entry, estimate if np.isfinite(estimate) else 0.0)


def _separating(captured: Captured) -> list[int]:
    """Slots of single ops (no views, not the outputs) that every path from the arguments to the outputs crosses."""
    from cohomcli.precision.prove.lowering import plain_graph
    from cohomcli.verify.graph import read_graph

    graph = read_graph(plain_graph(captured))
    outputs = set(graph.outputs.values())
    vertices = [captured.layout.slot[v.index] for v in captured.graph.vertices if v.kind == "op" and not v.fixed]
    return [s for s in vertices if s not in outputs and not graph.sources(outputs, {s})]
