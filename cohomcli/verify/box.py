"""Certified upper bounds of the rounding error of a small feed-forward net for every input of a box.

Change one thing at a time, from the exact net to the stored one: first the weights, layer by layer, then the stores, op
by op in order. Each change moves the output by at most sup |J| |change|, J the Jacobian of everything downstream (the
suffix), with the stored weights: by the mean value theorem, with J bounded over all values that occur on the way. J is
one interval matrix product per layer, so that signs cancel, and not a product of norms.

Model of the arithmetic (`store` semantics): a linear map is summed in float32 in any order, fused or not, with error at
most gamma_n (|W||x| + |b|), gamma_n = n u / (1 - n u) (Higham, "Accuracy and Stability of Numerical Algorithms", 2002,
section 3.1); elementwise functions f are computed in float32 with an error of at most 8 u (|x| + |f(x)|), which leaves
room for the cancellation in 1 + erf; every result is rounded once to its format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.precision.formats import Format, get_format, holds
from cohomcli.verify import functions as fn
from cohomcli.verify import ops_shape
from cohomcli.verify.arrays import Array, Unsupported, apply, balls, flint, is_object
from cohomcli.verify.enclose import run_step
from cohomcli.verify.graph import PlainGraph, Ref, Step, fill
from cohomcli.verify.products import dense
from cohomcli.verify.rounding import nearest_even, number
from cohomcli.verify.table import find

FORMATS = ("fp32", "bf16", "fp16")
MOST_SPLITS = 7  # every one doubles the work, and a certificate may come from a stranger
PIECES = 8  # that a range is cut into when a function and its slope are enclosed on it
KERNEL_ULPS = 8  # error, in float32 unit roundoffs of |x| + |f(x)|, that elementwise kernels are taken to have
_SMOOTH: dict[str, Callable[[Any], Any]] = {
    "tanh": fn.tanh,
    "sigmoid": fn.sigmoid,
    "silu": fn.silu,
    "gelu": fn.gelu,
    "exp": lambda x: x.exp(),
    "softplus": fn.softplus,
    "mish": fn.mish,
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
}
_LINEAR = ("linear", "addmm")
_FILLING = ("constant_pad_nd", "pad")  # among the operations that move entries, those that also make some


@dataclass(frozen=True)
class Box:
    """All x with |x - centre| <= radius entry by entry, per argument slot; float64 arrays of one shape."""

    centre: dict[int, NDArray[np.float64]]
    radius: dict[int, NDArray[np.float64]]

    def halves(self, slot: int, place: int) -> tuple[Box, Box]:
        """The box cut in two across one entry."""
        parts = []
        for sign in (-1.0, 1.0):
            centre, radius = dict(self.centre), dict(self.radius)
            r = radius[slot].copy()
            r.flat[place] = r.flat[place] / 2
            c = centre[slot].copy()
            c.flat[place] = c.flat[place] + sign * r.flat[place]
            # Rounded sums could leave a gap; a little more radius closes it.
            r.flat[place] = r.flat[place] * (1 + 2.0**-50) + abs(c.flat[place]) * 2.0**-51
            centre[slot], radius[slot] = c, r
            parts.append(Box(centre, radius))
        return parts[0], parts[1]


def bound(
    graph: PlainGraph,
    held: Mapping[int, Array],
    formats: Mapping[int, str],
    box: Box,
    output: int,
    splits: int = 0,
) -> list[Any]:
    """Upper bounds (balls; take `upper()`) of |computed - exact| for every entry of slot `output` over the box.

    `formats` names the format of every stored slot, weights and ops; a slot without one is kept as it is.
    `splits` times the box is cut across the entry that the output depends on most.

    Raises:
        Unsupported: an operation that is none of linear, sum, smooth elementwise, relu or view; formats other than
            fp32, bf16 and fp16; or values that may leave a format's range.
    """
    run = _Run(graph, held, formats, box, output)
    run.forward()
    run.backward()
    if splits == 0:
        return run.total()
    slot, place = run.most_sensitive()
    parts = [bound(graph, held, formats, half, output, splits - 1) for half in box.halves(slot, place)]
    return [a.max(b) for a, b in zip(*parts, strict=True)]


@dataclass
class _Run:
    """One box: ranges forwards, Jacobians of the suffixes backwards, and the sum."""

    graph: PlainGraph
    held: Mapping[int, Array]
    formats: Mapping[int, str]
    box: Box
    output: int
    ranges: dict[int, Array] = field(default_factory=dict)
    stored: dict[int, Array] = field(default_factory=dict)
    local: dict[int, Array] = field(default_factory=dict)  # bounds of |store - exact result of the stored operands|
    slopes: dict[int, Array] = field(default_factory=dict)
    jacobians: dict[int, Array] = field(default_factory=dict)
    size: int = 0
    sums: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        arb = flint().arb
        if any(name not in FORMATS for name in self.formats.values()):
            raise Unsupported("box bounds for formats other than fp32, bf16 and fp16")
        self.u32 = arb((1, -24))
        self.steps = self.graph.needed({self.output}, set())
        for slot, centre in self.box.centre.items():
            self.ranges[slot] = apply(lambda c, r: arb(c.mid(), r), centre, self.box.radius[slot])
        for slot, w in self.held.items():
            self.stored[slot] = self._stored_weight(slot, w)

    def _stored_weight(self, slot: int, w: Array) -> Array:
        if slot not in self.formats or w.dtype.kind != "f":
            return w
        target = get_format(self.formats[slot])
        rounded = [nearest_even(float(x), target) for x in w.ravel()]
        if any(x is None for x in rounded):
            raise Unsupported(f"a weight that {target.name} cannot hold")
        return np.array([float(number(x)) for x in rounded if x is not None]).reshape(w.shape)

    # --- forwards: ranges that hold every value on the way from the exact to the stored net ---

    def forward(self) -> None:
        """Ranges and local errors of every step."""
        for step in self.steps:
            name = _base(step)
            if _moves(step):
                if any(slot in self.held and self.stored[slot] is not self.held[slot] for slot in step.reads):
                    raise Unsupported("a box bound with a weight outside linear layers")
                self.ranges[step.out] = balls(run_step(step, {**self.held, **self.ranges}))
                continue
            value, computed = self._value(step, name)
            if value.shape != step.shape:
                raise Unsupported(f"{step.op} gave shape {value.shape}, the graph says {step.shape}")
            self.local[step.out] = self._rounded(step, name, value, computed)
            self.ranges[step.out] = apply(lambda v, e: v + flint().arb(0, e.upper()), value, self.local[step.out])

    def _value(self, step: Step, name: str) -> tuple[Array, Array]:
        """The range of the exact operation, and a bound of the float32 error of computing it."""
        if name in _LINEAR:
            return self._linear_value(step, name)
        if name == "add" and not step.kwargs:
            a, b = (self._operand(x) for x in step.args)
            total = np.asarray(a + b)
            return total, apply(lambda v: self.u32 * abs(v).upper(), total)
        if len(step.args) != 1 or set(step.kwargs) - {"approximate"}:
            raise Unsupported(f"a box bound through {step.op!r} with options")
        x = self._operand(step.args[0])
        if name == "relu":
            self.slopes[step.out] = apply(_relu_slope, x)
            return apply(fn.relu, x), balls(np.zeros(x.shape))
        function = fn.gelu_tanh if step.kwargs.get("approximate") == "tanh" else _SMOOTH.get(name)
        if function is None:
            raise Unsupported(f"a box bound through {step.op!r}")
        both = [_on_range(function, ball) for ball in x.ravel()]
        value, slope = (balls(np.empty(x.shape, dtype=object)) for _ in range(2))
        value.reshape(-1)[:] = [pair[0] for pair in both]
        slope.reshape(-1)[:] = [pair[1] for pair in both]
        self.slopes[step.out] = slope
        tiny = flint().arb((1, -146))
        return value, apply(lambda v, a: KERNEL_ULPS * self.u32 * (abs(v).upper() + abs(a).upper()) + tiny, value, x)

    def _linear_value(self, step: Step, name: str) -> tuple[Array, Array]:
        x, weight, bias = self._linear_parts(step, name)
        rows = self.ranges[x].reshape(-1, self.ranges[x].shape[-1])
        w = self._either(weight, name)
        size = apply(lambda v: abs(v).upper(), rows)
        value, magnitude = dense(rows, w), dense(size, apply(lambda v: abs(v).upper(), w))
        if bias is not None:
            b = self._either(bias, "")
            value, magnitude = value + b, magnitude + apply(lambda v: abs(v).upper(), b)
        n = rows.shape[1] + 1
        gamma = n * self.u32 / (1 - n * self.u32)
        tiny = flint().arb((n, -149))
        shape = (*self.ranges[x].shape[:-1], w.shape[1])
        return value.reshape(shape), apply(lambda m: (gamma * m + tiny).upper(), magnitude).reshape(shape)

    def _linear_parts(self, step: Step, name: str) -> tuple[Any, Any, Any]:
        """Slots of the operand, the weight and the bias; weights are held, as (out, in) or (in, out)."""
        if step.kwargs or not all(isinstance(a, Ref) or a is None for a in step.args):
            raise Unsupported(f"a box bound through {step.op!r} with options")
        slots = [None if a is None else a.slot for a in step.args]
        x, weight, bias = [*slots, None][:3] if name == "linear" else (slots[1], slots[2], slots[0])
        if x not in self.ranges or weight not in self.held or (bias is not None and bias not in self.held):
            raise Unsupported(f"a box bound through {step.op!r} whose weight is not a constant")
        return x, weight, bias

    def _either(self, slot: int, name: str) -> Array:
        """Balls that hold the exact and the stored weight; for a linear layer as (in, out)."""
        exact, stored = self.held[slot], self.stored[slot]
        w = balls(exact) if stored is exact else apply(lambda a, b: a.union(b), exact, stored)
        return w.T if name == "linear" else w

    def _operand(self, argument: Any) -> Array:
        if isinstance(argument, Ref) and argument.slot in self.ranges:
            return self.ranges[argument.slot]
        if isinstance(argument, Ref) and argument.slot in self.formats:
            raise Unsupported("a box bound with a weight outside linear layers")
        return balls(fill(argument, self.held))

    def _rounded(self, step: Step, name: str, value: Array, computed: Array) -> Array:
        """A bound of |stored - exact| per entry: the computation in float32, then one rounding."""
        if step.out not in self.formats:
            return computed
        target = get_format(self.formats[step.out])
        if name == "relu" and holds(self._format_of(step.args[0].slot), target.name):
            return computed  # a relu of stored numbers is one of them, or zero
        return apply(lambda v, e: _store(v, e, target), value, computed)

    def _format_of(self, slot: int) -> str:
        """The format that the numbers in a slot are known to have: its own, or through views its source's."""
        if slot in self.formats:
            return self.formats[slot]
        for step in self.steps:
            if step.out == slot and _moves(step) and step.reads:
                return self._format_of(step.reads[0])
        return "fp64"

    # --- backwards: Jacobians of the suffixes, with the stored weights ---

    def backward(self) -> None:
        """Jacobians (outputs, *shape) of every slot, and the sum of all contributions."""
        shape = self.ranges[self.output].shape
        self.size = int(np.prod(shape))
        self.sums = [flint().arb(0)] * self.size
        self.jacobians[self.output] = balls(np.eye(self.size)).reshape(self.size, *shape)
        for step in reversed(self.steps):
            j = self.jacobians.get(step.out)
            if j is None:
                continue
            name = _base(step)
            if step.out in self.local:
                self._contribute(j, self.local[step.out])
            if _moves(step):
                self._through_view(step, j)
            elif name in _LINEAR:
                self._through_linear(step, name, j)
            elif name == "add":
                for argument in step.args:
                    if isinstance(argument, Ref) and argument.slot in self.ranges:
                        self._gather(argument.slot, _unbroadcast(j, self.ranges[argument.slot].shape))
            else:
                self._gather(step.args[0].slot, j * self.slopes[step.out])

    def _gather(self, slot: int, j: Array) -> None:
        self.jacobians[slot] = self.jacobians[slot] + j if slot in self.jacobians else j

    def _contribute(self, j: Array, change: Array) -> None:
        """Add sup |J| |change| to every output's sum."""
        flat = apply(lambda v: abs(v).upper(), j.reshape(self.size, -1))
        found = dense(flat, change.reshape(-1, 1)).ravel()
        self.sums = [a + b for a, b in zip(self.sums, found, strict=True)]

    def _through_linear(self, step: Step, name: str, j: Array) -> None:
        x, weight, bias = self._linear_parts(step, name)
        size = apply(lambda v: abs(v).upper(), self.ranges[x]).reshape(-1, self.ranges[x].shape[-1])
        rows = j.reshape(-1, j.shape[-1])
        across = self.stored[weight] if name == "linear" else self.stored[weight].T
        self._gather(x, dense(rows, balls(across)).reshape(self.size, *self.ranges[x].shape))
        if self.stored[weight] is not self.held[weight]:
            # Rounding the weight changes the result by dW x: one signed matrix product with the Jacobian.
            change = balls(self.stored[weight]) - balls(self.held[weight])
            moved = dense(rows, change if name == "linear" else change.T).reshape(self.size, -1)
            self._contribute(moved, size)
        if bias is not None and self.stored[bias] is not self.held[bias]:
            change = balls(self.stored[bias]) - balls(self.held[bias])
            moved = dense(rows, change.reshape(-1, 1)).reshape(self.size, -1).sum(axis=1)
            self.sums = [a + abs(b).upper() for a, b in zip(self.sums, moved, strict=True)]

    def _through_view(self, step: Step, j: Array) -> None:
        """Move the Jacobian back along a view: which entry of which operand every entry shows is read off indices."""
        places: dict[int, Array] = {}
        start = 0
        for slot in step.reads:
            if slot in self.ranges:
                n = self.ranges[slot].size
                places[slot] = np.arange(start, start + n).reshape(self.ranges[slot].shape)
                start += n
        # Entries of constants show the last place, which is dropped; integers and masks stay what they are: indices.
        constants = {s: np.full(w.shape, start) if w.dtype.kind == "f" else w for s, w in self.held.items()}
        shown = run_step(step, {**constants, **places}).ravel().astype(np.int64)
        back = balls(np.zeros((self.size, start + 1)))
        flat = j.reshape(self.size, -1)
        for column, place in enumerate(shown.tolist()):
            back[:, place] = back[:, place] + flat[:, column]
        for slot, index in places.items():
            self._gather(slot, back[:, index.ravel()].reshape(self.size, *index.shape))

    # --- results ---

    def total(self) -> list[Any]:
        """The bound of every output entry."""
        return [value.upper() for value in self.sums]

    def most_sensitive(self) -> tuple[int, int]:
        """The argument entry with the largest sum of |J| radius."""
        best, where = -1.0, (next(iter(self.box.centre)), 0)
        for slot, radius in self.box.radius.items():
            if slot not in self.jacobians:
                continue
            weight = apply(lambda v: float(abs(v).upper()), self.jacobians[slot]).astype(np.float64)
            score = weight.reshape(self.size, -1).sum(axis=0) * radius.ravel()
            if float(score.max()) > best:
                best, where = float(score.max()), (slot, int(score.argmax()))
        return where


def _moves(step: Step) -> bool:
    """Whether a step only moves entries."""
    if step.op == "getitem" or _base(step) in _FILLING:
        return False
    return find(step.op).__module__ == ops_shape.__name__


def _base(step: Step) -> str:
    """ "linear" of "aten.linear.default"."""
    return step.op.split(".")[1] if step.op.startswith("aten.") else step.op


def _store(value: Any, computed: Any, target: Format) -> Any:
    """|store(fl(v)) - v| <= e + u (|v| + e) + half the subnormal spacing; refused where v may overflow."""
    arb = flint().arb
    largest = abs(value).upper() + computed
    if not largest <= arb(target.max):
        raise Unsupported(f"a value that may leave the range of {target.name} on the box")
    return (computed + arb(target.unit_roundoff) * largest + arb(target.min_subnormal) / 2).upper()


def _relu_slope(x: Any) -> Any:
    arb = flint().arb
    if x >= 0:
        return arb(1)
    return arb(0) if x <= 0 else arb(0.5, 0.5)


def _on_range(function: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    """Enclosures of a smooth function and of its derivative on a ball, piece by piece."""
    module = flint()
    low, width = x.lower(), (x.upper() - x.lower()) / PIECES
    value = slope = None
    for i in range(PIECES):
        piece = (low + width * i).union(low + width * (i + 1))
        found = function(module.arb_series([piece, 1], prec=2))
        pair = found[0], found[1]
        value = pair[0] if value is None else value.union(pair[0])
        slope = pair[1] if slope is None else slope.union(pair[1])
    return value, slope


def _unbroadcast(j: Array, shape: tuple[int, ...]) -> Array:
    """Sum a Jacobian over the dimensions that an operand of this shape was repeated along."""
    while j.ndim - 1 > len(shape):
        j = j.sum(axis=1)
    for axis, n in enumerate(shape):
        if n == 1 and j.shape[axis + 1] != 1:
            j = j.sum(axis=axis + 1, keepdims=True)
    assert is_object(j)
    return j
