"""What storing each vertex in each format does to the output, to first order, from one forward run and K adjoints.

A rounding d = round_f(v) - v changes the output by J_v d, and g_k = J_v^T lambda_k from a backward sweep
(`precision.adjoint`) along random directions lambda_k (Hutchinson 1990) has E (g_k . d)^2 = ||J_v d||^2. A plan's
squared error is estimated in two parts, by how much is known about its roundings:

- known roundings: those of weights, which do not depend on the plan, and of a residual stream's dominant entries, which
  are followed through it (`precision.streams`). They neither average out nor add in squares: their projections are
  added first, mean_k (sum_v g_kv . d_v)^2.
- all others depend on everything before them and are taken as independent with the sizes they have in the recorded
  run: sum_v mean_k sum_j g_kj^2 d_j^2. This is ADAPT's estimate (Menon et al. 2018) with random output directions.
  Where operands lie on the format's grid already, their op is rounded from there; where mean_k (g_k . d)^2 is larger
  than chance allows, a rounding is coherent in itself and counts with that.

What is left out: curvature, covariances of the others, and the sampling noise of K directions per input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.precision.adjoint import Recording, Sweep, record
from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import Emulator, masked_entries, store_value, uniform, weight_axes
from cohomcli.precision.formats import get_format
from cohomcli.precision.output_norm import bind, from_scores
from cohomcli.precision.ranges import describe
from cohomcli.precision.spec import Admissibility, ErrorNorm, Inherited, Plan, Projections, Sensitivity, Vertex
from cohomcli.precision.streams import Follower, projections
from cohomcli.progress import Progress, silent

STEP = "adjoints"
N_PROBES = 32  # a squared score's relative standard deviation is at most sqrt(2 / K) = 0.25 on one input
GRADIENT_LIMIT = 65536  # weights up to this size have their K gradients formed
MAX_ON_GRID = 4  # free operands of an op whose grids are looked at: 2^4 combinations
# The coherent estimate of K independent roundings is chi^2_K / K: beyond this many standard deviations it is coherence.
SIGNIFICANT = 4.0
# Ops whose results are generic whatever the grid of their operands; all others may copy, select, add or scale.
_GENERIC = re.compile(
    r"aten\.(linear|addmm|baddbmm|mm|bmm|matmul|einsum|conv|_?softmax|_?log_softmax|.*norm|gelu|silu|mish|elu|selu|celu"
    r"|softplus|tanh|sigmoid|exp|log|rsqrt|sqrt|pow|mean|sum|var|std|cos|sin|erf|scaled_dot|_scaled_dot|lstm|gru|rnn"
    r"|avg_pool|adaptive_avg|upsample_bi|cumsum|reciprocal|square)"
)


@dataclass(frozen=True)
class SensitivityOptions:
    """Formats to score, the output norm, and how many adjoints per input from which seed; float64 doubles the cost."""

    formats: tuple[str, ...]
    norm: ErrorNorm = "rel-l2"
    n_probes: int = N_PROBES
    seed: int = 0
    dtype: torch.dtype = torch.float32


def sensitivity(
    captured: Captured,
    inputs: Sequence[Any],
    options: SensitivityOptions,
    admissible: Admissibility | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """Score every vertex in every format on `inputs` (the calibration set); errors are over all of them together.

    Raises:
        UsageError: no formats, an unknown one, fewer than one probe, or a norm that does not fit the outputs.
        AnalysisIncomplete: the model itself is not finite on an input, or an op has no (finite) derivative there.
    """
    if not options.formats or options.n_probes < 1:
        raise UsageError("sensitivity needs at least one format and one probe")
    for name in options.formats:
        get_format(name)
    norm = bind(captured, inputs, options.norm)
    if options.norm == "max-abs":
        norm = norm.with_crest(_trial(captured, inputs, options, admissible))
    scorer = _Scorer(captured, options)
    generator = torch.Generator().manual_seed(options.seed)
    for index, example in enumerate(inputs):
        progress(STEP, index, len(inputs))
        seeds = norm.seeds(index, options.n_probes, generator, options.dtype)
        recording = record(captured, example, options.dtype)
        _refuse_non_finite(recording)
        scorer.add(Sweep(recording, seeds))
    progress(STEP, len(inputs), len(inputs))
    return scorer.result(admissible)


def _refuse_non_finite(recording: Recording) -> None:
    """An infinity or NaN in a value that is no mask would make every score upstream of it NaN."""
    for vertex in recording.captured.graph.vertices:
        value = recording.values.get(vertex.index)
        if value is None or vertex.fixed not in ("", "input") or not value.is_floating_point():
            continue
        # A finite sum has finite terms: the second look is rarely needed.
        if not bool(torch.isfinite(value.sum())) and not bool(
            (torch.isfinite(value) | masked_entries(vertex, value)).all()
        ):
            raise AnalysisIncomplete(
                f"the {str(recording.dtype).removeprefix('torch.')} model itself is not finite at {describe(vertex)}",
                "check the model and its inputs",
            )


def _trial(
    captured: Captured, inputs: Sequence[Any], options: SensitivityOptions, admissible: Admissibility | None
) -> list[tuple[torch.Tensor, ...]]:
    """Outputs of a trial plan in the first narrow format where it is admissible, whose error shows the crest factor."""
    narrow = [f for f in options.formats if get_format(f).n_bytes == 2] or ["bf16"]
    allowed = None
    if admissible is not None and narrow[0] in admissible.formats:
        column = admissible.allowed[:, admissible.formats.index(narrow[0])]
        allowed = dict(enumerate(column.tolist()))
    plan, emulator = uniform(captured, narrow[0], allowed), Emulator(captured)
    return [emulator(plan, x).outputs for x in inputs]


@dataclass
class _Sums:
    """Of an op, over inputs: the two estimators per (row, format); row 0 has no operand on the grid.

    `dominant` is the diagonal estimate of the entries that a stream follows, which the others leave out.
    """

    diagonal: NDArray[np.float64]
    coherent: NDArray[np.float64]
    dominant: NDArray[np.float64]
    operands: tuple[int, ...] = ()


class _Directions:
    """The cotangents of one store: `all` (K, numel), and the mean of their squares (numel,)."""

    def __init__(self, cotangents: torch.Tensor) -> None:
        self.all = cotangents.reshape(len(cotangents), -1)
        self.mean_square = self.all.square().mean(0)


class _Scorer:
    """Collects both estimators of every vertex from the sweeps over the inputs."""

    def __init__(self, captured: Captured, options: SensitivityOptions) -> None:
        self.captured, self.options = captured, options
        self.vertices = captured.graph.vertices
        self.axes = weight_axes(captured)
        self.sums: dict[int, _Sums] = {}
        self.follower = Follower(captured)
        self._entries: dict[int, torch.Tensor] = {}  # positions that dominate a stream's sum
        self._dots: list[dict[int, torch.Tensor]] = []  # of weights, input by input: (K, F) summed over their readers

    def add(self, sweep: Sweep) -> None:
        """Score one input's sweep."""
        self._dots.append({})
        self._entries = self.follower.begin(sweep.recording.values)
        small = {v.index for v in self.vertices if v.kind == "weight" and not v.fixed and v.numel <= GRADIENT_LIMIT}
        sweep.run(lambda vertex, cotangents: self._visit(sweep, vertex, cotangents), small)

    def _entry(self, vertex: int, operands: tuple[int, ...] = ()) -> _Sums:
        if vertex not in self.sums:
            shape = (2 ** len(operands), len(self.options.formats))
            self.sums[vertex] = _Sums(np.zeros(shape), np.zeros(shape), np.zeros(shape), operands)
        return self.sums[vertex]

    def _visit(self, sweep: Sweep, vertex: int, cotangents: torch.Tensor) -> None:
        """Score a store, of ops with and without operands on the grid, and the large weights that an op reads."""
        self._score_weights(sweep, vertex, cotangents)
        if self.vertices[vertex].fixed:
            return
        value, directions = sweep.recording.values[vertex], _Directions(cotangents)
        if not bool(torch.isfinite(directions.mean_square.sum())):
            raise AnalysisIncomplete(
                f"the outputs have no finite derivative with respect to {describe(self.vertices[vertex])}",
                "an operation after it is at a singular point: check the model and its inputs",
            )
        rounding = torch.stack([self._rounding(vertex, value, fmt) for fmt in self.options.formats])
        if self.vertices[vertex].kind == "weight":
            self._dots[-1][vertex] = directions.all @ rounding.T
            return
        operands = self._grid_operands(vertex)
        self._entry(vertex, operands)
        kernel = self._kernel_formats(sweep.recording)
        if kernel:
            rounding[kernel] = sweep.kernel_error(vertex).flatten()
        self._accumulate(vertex, 0, directions, rounding)
        for row in range(1, 2 ** len(operands)):
            on_grid = [u for bit, u in enumerate(operands) if row >> bit & 1]
            inherited = [
                rounding[n] if n in kernel else self._inherited(sweep, vertex, on_grid, fmt)
                for n, fmt in enumerate(self.options.formats)
            ]
            self._accumulate(vertex, row, directions, torch.stack(inherited))

    def _kernel_formats(self, recording: Recording) -> list[int]:
        """Where the recording itself is what storing gives, so that only the error of the kernels shows."""
        if recording.dtype != torch.float32:
            return []
        return [n for n, fmt in enumerate(self.options.formats) if fmt == "fp32"]

    def _grid_operands(self, vertex: int) -> tuple[int, ...]:
        """Operands whose grid can make the store exact: of ops that are not generic, and have few."""
        v = self.vertices[vertex]
        free = tuple(u for u in v.operands if not self.vertices[u].fixed)
        return () if _GENERIC.match(v.target) or len(free) > MAX_ON_GRID else free

    def _accumulate(self, vertex: int, row: int, directions: _Directions, roundings: torch.Tensor) -> None:
        """Add both estimators for roundings (F, numel)."""
        entry = self._entry(vertex)
        if vertex in self._entries:
            at = self._entries[vertex]
            self.follower.take(vertex, directions.all[:, at])
            entry.dominant[row] += (roundings[:, at].square() @ directions.mean_square[at]).double().numpy()
            roundings = roundings.index_fill(1, at, 0.0)
        entry.diagonal[row] += (roundings.square() @ directions.mean_square).double().numpy()
        entry.coherent[row] += (directions.all @ roundings.T).square().mean(0).double().numpy()

    def _rounding(self, vertex: int, value: torch.Tensor, fmt: str) -> torch.Tensor:
        """d (numel,): what storing `value` in `fmt` adds to it; zero where masked or overflowing."""
        v = self.vertices[vertex]
        if not _stores(v, fmt):
            return value.new_zeros(value.numel())
        d = store_value(v, value, fmt, self.axes.get(vertex, 0)) - value
        if v.mask_level:
            d = d.masked_fill(masked_entries(v, value), 0.0)
        return d.flatten().nan_to_num_(0.0, 0.0, 0.0)

    def _inherited(self, sweep: Sweep, vertex: int, on_grid: Sequence[int], fmt: str) -> torch.Tensor:
        """d (numel,) when the operands `on_grid` are themselves stored in `fmt`."""
        values = sweep.recording.values
        if get_format(fmt).per_channel:
            return values[vertex].new_zeros(values[vertex].numel())
        rounded = {u: store_value(self.vertices[u], values[u], fmt, self.axes.get(u, 0)) for u in on_grid}
        return self._rounding(vertex, sweep.evaluate(vertex, rounded).detach(), fmt)

    def _score_weights(self, sweep: Sweep, vertex: int, cotangents: torch.Tensor) -> None:
        """Add <cotangents, change of the op> for each large weight it reads, (K, F) summed over its readers."""
        for u in self.vertices[vertex].operands:
            w = self.vertices[u]
            if w.kind == "weight" and not w.fixed and w.numel > GRADIENT_LIMIT:
                dots = [self._dot(sweep, vertex, u, fmt, cotangents) for fmt in self.options.formats]
                self._dots[-1][u] = self._dots[-1].get(u, 0.0) + torch.stack(dots, dim=1)

    def _dot(self, sweep: Sweep, vertex: int, weight: int, fmt: str, cotangents: torch.Tensor) -> torch.Tensor:
        w, value = self.vertices[weight], sweep.recording.values[weight]
        rounded = store_value(w, value, fmt, self.axes.get(weight, 0)) if _stores(w, fmt) else value
        if rounded is value:
            return cotangents.new_zeros(len(cotangents))
        change = sweep.evaluate(vertex, {weight: rounded}).detach() - sweep.recording.values[vertex]
        return cotangents.reshape(len(cotangents), -1) @ change.nan_to_num_(0.0, 0.0, 0.0).flatten()

    def result(self, admissible: Admissibility | None) -> Sensitivity:
        """The scores, inf where not admissible."""
        n, options, weights = len(self.vertices), self.options, self._weights()
        scores, diagonal, coherent = (np.zeros((n, len(options.formats))) for _ in range(3))
        scores[weights.vertices] = np.square(weights.values).mean(axis=3).sum(axis=2)
        diagonal[weights.vertices] = coherent[weights.vertices] = scores[weights.vertices]
        inherited, minor = [], []
        for vertex, sums in self.sums.items():
            combined = self._combine(sums)
            scores[vertex] = combined[0] + sums.dominant[0]
            diagonal[vertex], coherent[vertex] = sums.diagonal[0] + sums.dominant[0], sums.coherent[0]
            if sums.operands:
                inherited.append(Inherited(vertex, sums.operands, combined + sums.dominant))
            if sums.dominant.any():
                minor.append(Inherited(vertex, sums.operands, combined))
        if admissible is not None:
            scores[~_columns(admissible, options.formats)] = math.inf
        scores[[v.index for v in self.vertices if v.fixed]] = 0.0
        return Sensitivity(
            formats=options.formats,
            scores=scores,
            diagonal=diagonal,
            coherent=coherent,
            n_probes=options.n_probes,
            norm=options.norm,
            inherited=tuple(inherited),
            streams=self.follower.result(options.n_probes),
            minor=tuple(minor),
            weights=weights,
        )

    def _weights(self) -> Projections:
        """The weights' projections of all inputs, zero where an output does not depend on one."""
        found = sorted({v for dots in self._dots for v in dots})
        none = torch.zeros(self.options.n_probes, len(self.options.formats))
        values = np.zeros((len(found), len(self.options.formats), len(self._dots), self.options.n_probes))
        for n, dots in enumerate(self._dots):
            for row, v in enumerate(found):
                values[row, :, n] = dots.get(v, none).T.double().numpy()
        return Projections(np.array(found, dtype=np.int64), values)

    def _combine(self, sums: _Sums) -> NDArray[np.float64]:
        noise = 1.0 + SIGNIFICANT * math.sqrt(2.0 / self.options.n_probes)
        return np.where(sums.coherent > noise * sums.diagonal, sums.coherent, sums.diagonal)


def _stores(vertex: Vertex, fmt: str) -> bool:
    """Whether a vertex can be stored in `fmt` at all: int8 is for weights with channels."""
    return not get_format(fmt).per_channel or (vertex.kind == "weight" and len(vertex.shape) > 1)


def _columns(admissible: Admissibility, formats: Sequence[str]) -> NDArray[np.bool_]:
    """`allowed` with its columns in the order of `formats`.

    Raises:
        UsageError: a format that admissibility was not decided for.
    """
    if missing := [f for f in formats if f not in admissible.formats]:
        raise UsageError(
            f"admissibility says nothing about {missing[0]!r}", f"it knows {', '.join(admissible.formats)}"
        )
    return admissible.allowed[:, [admissible.formats.index(f) for f in formats]]


# --- prediction -------------------------------------------------------------------------------------------------------


def predict(found: Sensitivity, plan: Plan) -> float:
    """The plan's predicted error in the units of the norm (estimated); inf where it uses an inadmissible format.

    Raises:
        UsageError: a format that was not scored, or a plan for another graph.
    """
    return from_scores(found.norm, float(sum(contributions(found, plan))))


def contributions(found: Sensitivity, plan: Plan) -> NDArray[np.float64]:
    """Each vertex's share (n,) of the predicted squared error; inf where its format is not admissible.

    Shares of weights and of the sums of a residual stream are covariances with the error of all of them together: a
    negative one takes back what others do.

    Raises:
        UsageError: a format that was not scored, or a plan for another graph.
    """
    if len(plan.formats) != len(found.scores):
        raise UsageError(f"the plan has {len(plan.formats)} formats for {len(found.scores)} vertices")
    column = {f: n for n, f in enumerate(found.formats)}
    if unknown := sorted({f for f in plan.formats if f and f not in column}):
        raise UsageError(f"format {unknown[0]!r} has no scores", f"scored: {', '.join(found.formats)}")
    total = np.array([found.scores[v, column[f]] if f else 0.0 for v, f in enumerate(plan.formats)])
    admissible = np.isfinite(total)
    bits = [_bits(f) for f in plan.formats]
    for entry in (*found.inherited, *found.minor):
        if admissible[entry.vertex]:
            row = sum(1 << n for n, u in enumerate(entry.operands) if bits[u] <= bits[entry.vertex])
            total[entry.vertex] = entry.scores[row, column[plan.formats[entry.vertex]]]
    if found.weights is not None:
        total[found.weights.vertices[admissible[found.weights.vertices]]] = 0.0
        known, along = _known_roundings(found, found.weights, plan, column)
        total[known] += (along * along.sum(axis=0)).mean(axis=2).sum(axis=1)
    return total


def _known_roundings(
    found: Sensitivity, weights: Projections, plan: Plan, column: Mapping[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Vertices (m,), none twice, and their projections (m, n_inputs, K) under the plan."""
    formats = [column.get(plan.formats[v], 0) for v in weights.vertices]
    vertices, along = [weights.vertices], [weights.values[np.arange(len(formats)), formats]]
    for stream in found.streams:
        vertices.append(np.array([v for v, *_ in stream.sums], dtype=np.int64))
        along.append(projections(stream, plan, weights.values.shape[2]))
    return np.concatenate(vertices), np.concatenate(along)


def _bits(fmt: str) -> int:
    """Significand bits of what is read from a store; int8 values fill a float32. 0 for what has no format to choose."""
    if not fmt:
        return 0
    return 24 if get_format(fmt).per_channel else get_format(fmt).significand_bits


def copies(found: Sensitivity) -> Mapping[int, int]:
    """Vertices that only copy, select or scale one operand, each with that operand.

    Stored in one format the copy is exact, so an assignment may tie both and count the rounding once.
    """
    return {
        entry.vertex: entry.operands[0]
        for entry in found.inherited
        if len(entry.operands) == 1 and not entry.scores[1].any() and entry.scores[0].any()
    }
