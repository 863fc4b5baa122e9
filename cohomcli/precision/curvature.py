"""Conditioning and curvature of single operations: closed forms where there are any, and autodiff at the operands.

The curvature of an op f is sup_{|h|=1} ||D^2 f(x)[h, h]||_2, the size of the part of its response that is not linear:
f(x + h) = f(x) + Df h + 1/2 D^2 f[h, h] + ... It decides nothing about formats; it says where first order may fail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cohomcli.errors import UsageError
from cohomcli.precision.adjoint import Recording, Sweep
from cohomcli.precision.capture import Captured
from cohomcli.precision.closedforms import Arguments, find_form
from cohomcli.precision.execute import run
from cohomcli.precision.program import Slot, map_leaves
from cohomcli.precision.spec import Vertex

N_PROBES = 8  # of the conditioning
CONVERGED = 1e-9  # relative gain of a step of the power method
N_STARTS = 4  # of the power method, for ops with at most SMALL numbers to vary; large ones have one
SMALL = 1024


@dataclass(frozen=True)
class OpCurvature:
    """Curvature of the op at `vertex` on one input.

    `bound` is the closed form's value (None where we have none), `formula` and `reference` say where it comes from.
    `measured` is the largest value that a power method found at the recorded operands: a lower bound there.
    `condition` is sqrt(E ||J (x e)||^2) / ||f(x)|| over independent relative errors e of unit variance in all operands:
    how many times larger the output's relative error is than the operands'.
    Both are nan where the op has no derivative there, and `note` says why.
    """

    vertex: int
    target: str
    bound: float | None
    formula: str
    reference: str
    measured: float
    condition: float
    note: str = ""


def curvatures(
    captured: Captured, inputs: Any, vertices: Sequence[int] | None = None, iterations: int = 20, seed: int = 0
) -> list[OpCurvature]:
    """Curvature and conditioning of ops (default: all with a format to choose) on one input, in float64.

    Each costs at most `iterations` second derivatives of that op alone. Weights are part of the function.

    Raises:
        UsageError: one of `vertices` is a weight or an input.
    """
    graph = captured.graph
    chosen = [v.index for v in graph.vertices if v.kind == "op" and not v.fixed] if vertices is None else vertices
    if stored := [graph.vertices[v].name for v in chosen if graph.vertices[v].kind != "op"]:
        raise UsageError(f"{stored[0]!r} is no operation: it has no curvature", "name the vertices of operations")
    sweep = Sweep(_record(captured, inputs, set(chosen)), [])
    generator = torch.Generator().manual_seed(seed)
    return [_measure(sweep, graph.vertices[v], iterations, generator) for v in chosen]


def _record(captured: Captured, inputs: Any, chosen: set[int]) -> Recording:
    """The float64 run with the values of what the ops `chosen` read."""
    layout, instructions = captured.layout, captured.program.instructions
    read = {slot for v in chosen for n in layout.cone[v] for slot in instructions[n].reads}
    wanted = {layout.root[slot] for slot in read if slot in layout.root}
    values: dict[int, torch.Tensor] = {}

    def keep(vertex: int, value: torch.Tensor) -> torch.Tensor:
        if vertex in wanted:
            values[vertex] = value
        return value

    outputs = run(captured, inputs, torch.float64, keep)
    return Recording(captured, values, outputs, torch.float64)


def _measure(sweep: Sweep, vertex: Vertex, iterations: int, generator: torch.Generator) -> OpCurvature:
    moving = _moving(sweep.captured, vertex)
    form = find_form(vertex.target)
    bound = form.value(_arguments(sweep, vertex, moving)) if form and moving else None
    measured, condition, note = _derivatives(sweep, vertex, moving, iterations, generator)
    return OpCurvature(
        vertex=vertex.index,
        target=vertex.target,
        bound=bound if bound is not None and math.isfinite(bound) else None,
        formula=form.formula if form and bound is not None else "",
        reference=form.reference if form and bound is not None else "",
        measured=measured,
        condition=condition,
        note=note,
    )


def _moving(captured: Captured, vertex: Vertex) -> list[int]:
    """Real operands that depend on the input: weights and mask constants are part of the function."""
    vertices = captured.graph.vertices
    return [
        u
        for u in vertex.operands
        if vertices[u].dtype.startswith("float")
        and vertices[u].kind != "weight"
        and vertices[u].fixed != "mask constant"
    ]


def _arguments(sweep: Sweep, vertex: Vertex, moving: Sequence[int]) -> Arguments:
    """The ATen call of the op with its recorded arguments."""
    layout, instructions = sweep.captured.layout, sweep.captured.program.instructions
    number = next(n for n in reversed(layout.cone[vertex.index]) if instructions[n].op == vertex.target)
    instruction, values = instructions[number], sweep.shown(vertex.index, number)
    resolved = map_leaves(lambda a: values[a.index] if isinstance(a, Slot) else a, tuple(instruction.args))
    roots = [layout.root.get(a.index) if isinstance(a, Slot) else None for a in instruction.args]
    return Arguments(resolved, tuple(root in moving for root in roots), tuple(roots))


def _derivatives(
    sweep: Sweep, vertex: Vertex, moving: Sequence[int], iterations: int, generator: torch.Generator
) -> tuple[float, float, str]:
    """(curvature, conditioning, reason for nan)."""
    if not vertex.dtype.startswith("float"):
        return math.nan, math.nan, f"its result is {vertex.dtype}: there is no derivative"
    if not moving:
        return 0.0, 0.0, "it reads no real number that depends on the input"
    function = _Local(sweep, vertex.index, moving)
    try:
        measured, condition = function.curvature(iterations, generator), function.condition(generator)
    except (RuntimeError, NotImplementedError) as error:  # what autograd raises for an op without a derivative
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return math.nan, math.nan, f"torch cannot differentiate it: {first[:160]}"
    if not (math.isfinite(measured) and math.isfinite(condition)):
        return math.nan, math.nan, "its derivatives are not finite at the recorded operands"
    return measured, condition, ""


class _Local:
    """One op as a function of its moving operands, taken together as one vector."""

    def __init__(self, sweep: Sweep, vertex: int, operands: Sequence[int]) -> None:
        self.sweep, self.vertex, self.operands = sweep, vertex, operands
        self.points = [sweep.recording.values[u].detach() for u in operands]

    def __call__(self, points: Sequence[torch.Tensor]) -> torch.Tensor:
        replaced: Mapping[int, torch.Tensor] = dict(zip(self.operands, points, strict=True))
        return self.sweep.evaluate(self.vertex, replaced).double()

    def curvature(self, iterations: int, generator: torch.Generator) -> float:
        """The largest |D^2 f[h, h]| that the power method finds from almost equal entries and from random ones.

        From equal entries an elementwise op's largest |f''| wins (exact ties would not be broken); many ops do not feel
        a constant added to all entries.
        """
        n_drawn = N_STARTS if sum(p.numel() for p in self.points) <= SMALL else 1
        drawn = [
            [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in self.points] for _ in range(1 + n_drawn)
        ]
        starts = [[1.0 + 1e-3 * noise for noise in drawn[0]], *drawn[1:]]
        return max((self._ascend(start, iterations) for start in starts), key=lambda x: (x != x, x))

    def _ascend(self, start: Sequence[torch.Tensor], iterations: int) -> float:
        """A shifted power method (Kolda and Mayo 2011) on the quartic form |D^2 f[h, h]|^2 over unit h.

        Its gradient is along the Hessian of <u, f> applied to h, with u = D^2 f[h, h]. The shift by h itself, as long
        as the gradient, keeps the method from jumping between two directions.
        """
        h, best = _normalised(start), 0.0
        for _ in range(iterations):
            second = self._second(h)
            size = float(second.norm())
            if not math.isfinite(size):
                return math.nan
            if size <= best * (1.0 + CONVERGED):
                return max(best, size)
            best = size
            step = _normalised(self._hessian_product(second / size, h))
            h = _normalised([a + b for a, b in zip(h, step, strict=True)])
        return best

    def _second(self, h: Sequence[torch.Tensor]) -> torch.Tensor:
        """D^2 f[h, h]: two nested directional derivatives."""
        jvp: Any = torch.autograd.functional.jvp
        directions = tuple(h)

        def first(*points: torch.Tensor) -> Any:
            return jvp(lambda *p: self(p), points, directions, create_graph=True)[1]

        with torch.enable_grad():
            second: torch.Tensor = jvp(first, tuple(self.points), directions)[1]
        return second

    def _hessian_product(self, u: torch.Tensor, h: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with torch.enable_grad():
            points = [p.clone().requires_grad_() for p in self.points]
            gradients = torch.autograd.grad((self(points) * u).sum(), points, create_graph=True, allow_unused=True)
            terms = [(g * d).sum() for g, d in zip(gradients, h, strict=True) if g is not None and g.requires_grad]
            if not terms:
                return [torch.zeros_like(p) for p in self.points]
            products = torch.autograd.grad(torch.stack(terms).sum(), points, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(points, products, strict=True)]

    def condition(self, generator: torch.Generator) -> float:
        """sqrt(E ||J (x e)||^2) / ||f||, from E_lambda ||x * J^T lambda||^2 with Gaussian directions lambda."""
        with torch.enable_grad():
            points = [p.clone().requires_grad_() for p in self.points]
            value = self(points)
            size = float(value.detach().norm())
            if not value.requires_grad or size == 0.0:
                return 0.0
            total = 0.0
            for _ in range(N_PROBES):
                direction = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                gradients = torch.autograd.grad(value, points, direction, retain_graph=True, allow_unused=True)
                total += sum(_scaled_square(g, p.detach()) for g, p in zip(gradients, points, strict=True))
        return math.sqrt(total / N_PROBES) / size


def _scaled_square(gradient: torch.Tensor | None, point: torch.Tensor) -> float:
    """|x * g|^2, where no derivative is no part of it, whatever x is (an infinite mask)."""
    if gradient is None:
        return 0.0
    return float(torch.where(gradient == 0, 0.0, gradient * point).square().sum())


def _normalised(h: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    size = math.sqrt(sum(float(x.square().sum()) for x in h))
    return [x / size if size > 0.0 else x for x in h]
