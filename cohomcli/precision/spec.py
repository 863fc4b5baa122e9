"""What the parts of the precision engine hand to each other: graph, plan, sensitivities, problem, solution.

Execution semantics, named `store`: every operation reads its operands as they are stored, computes in at least
float32, and its result is rounded once to its own format when it is stored. Operands of unequal formats are promoted
exactly, so only stores round. A weight is a vertex like any other: its store rounds it once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cohomcli.precision.certificate import Certificate

SEMANTICS = "store"
VertexKind = Literal["op", "weight", "input"]
ErrorNorm = Literal["rel-l2", "max-abs", "kl"]


@dataclass(frozen=True)
class Vertex:
    """A stored tensor of the exported graph: the result of a value-changing op, a weight (or buffer), or an input.

    Views (reshape, transpose, slice, expand, ...) are contracted into the vertex whose value they show. `name` is the
    graph's node name, `target` the ATen op ("aten.linear.default") or "" for weights and inputs, `module` the path of
    the module it belongs to ("transformer.h.0.attn"), `numel` the elements stored. `operands` are the vertices it
    reads, without repetition. `storage` identifies the memory of a weight: tied weights share one. `fixed` names the
    reason why its format cannot be chosen ("integer", "bool", "complex", "input", "constant" of the model's code,
    "mask constant", "discrete": it only decides something discrete), or is empty. `mask_level` < 0 says that entries
    of at most half of it come from an additive attention mask of that value: a store saturates them at the format's
    lowest number instead of overflowing (`clamp` before the cast), and they do not count for ranges.
    """

    index: int
    name: str
    kind: VertexKind
    target: str
    module: str
    shape: tuple[int, ...]
    dtype: str
    numel: int
    operands: tuple[int, ...] = ()
    storage: str = ""
    fixed: str = ""
    mask_level: float = 0.0


@dataclass(frozen=True)
class ComputationGraph:
    """Vertices in topological order; `outputs` are the vertices whose values the model returns."""

    vertices: tuple[Vertex, ...]
    outputs: tuple[int, ...]

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Every (producer, consumer) pair once, in the consumers' order."""
        return tuple((u, v.index) for v in self.vertices for u in v.operands)


@dataclass(frozen=True)
class Plan:
    """One format name per vertex ("" for a vertex that is fixed and keeps its dtype)."""

    formats: tuple[str, ...]


@dataclass(frozen=True)
class Ranges:
    """What calibration saw: largest and smallest non-zero finite magnitude per vertex, arrays (n_vertices,) float64.

    `peaks` (n_inputs, n_vertices) are the largest magnitudes input by input, None where they were not kept.
    """

    max_abs: NDArray[np.float64]
    min_abs: NDArray[np.float64]
    peaks: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Inherited:
    """Scores of a vertex whose operands may already lie on its format's grid: copies, sums, products by powers of two.

    Bit i of a row's number says that `operands[i]` is stored with no more significand bits than the vertex's format:
    `scores[row, f]` replaces `Sensitivity.scores[vertex, f]` then. relu(x) with x in bf16 is exact in bf16 and wider.
    """

    vertex: int
    operands: tuple[int, ...]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Stream:
    """The dominant entries of a residual stream (`precision.streams`), of all inputs, as one row of T entries.

    `sums` are (vertex, operand, operand) in order, `example[t]` is the input that entry t is of. `values[u]` (T,) are
    the entries at a sum or an operand u, `largest[u]` (T,) the largest magnitudes of their tensors, and `gradients`
    (n_sums, K, T) the entries' adjoints at the sums.
    """

    sums: tuple[tuple[int, ...], ...]
    example: NDArray[np.int64]
    values: dict[int, NDArray[np.float64]]
    largest: dict[int, NDArray[np.float64]]
    gradients: NDArray[np.float64]


@dataclass(frozen=True)
class Projections:
    """<g, d> for the roundings d of weights along every adjoint: `values` (W, F, n_inputs, K) of `vertices` (W,)."""

    vertices: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Sensitivity:
    """First-order effect of storing vertex v in format f on the output error, from K random adjoints (estimated).

    `scores[v, f]` estimates the squared output error, in the units of `norm` squared (of `kl`: KL itself, in nats), on
    the assumption that the operands of v are not rounded to f; inf where the format is not admissible. They add up to
    a plan's squared error on average over independent roundings; `sensitivity.predict` knows more about one plan: rows
    of `inherited` where they apply, and what `weights` and the dominant entries of `streams` do together. `minor` has
    the scores of the streams' sums without their dominant entries.
    `diagonal` and `coherent` are the two estimators, mean_k sum_j g_j^2 d_j^2 (independent roundings) and
    mean_k (g . d)^2 (this very rounding): the rounding of a weight is the same in every plan and takes the second (it
    has no other), that of an op depends on all before it and takes the first, unless the second is larger beyond
    sampling noise.
    `curvature_ratio[f]` is even/odd of the antithetic test under uniform format f: how far first order can be trusted.
    """

    formats: tuple[str, ...]
    scores: NDArray[np.float64]
    diagonal: NDArray[np.float64]
    coherent: NDArray[np.float64]
    n_probes: int
    norm: ErrorNorm
    curvature_ratio: dict[str, float] = field(default_factory=dict)
    inherited: tuple[Inherited, ...] = ()
    streams: tuple[Stream, ...] = ()
    minor: tuple[Inherited, ...] = ()
    weights: Projections | None = None


@dataclass(frozen=True)
class Admissibility:
    """`allowed[v, f]`, and for every pair that is not allowed a sentence that says why, measured or by rule."""

    formats: tuple[str, ...]
    allowed: NDArray[np.bool_]
    reasons: dict[tuple[int, str], str]


@dataclass(frozen=True)
class Problem:
    """min sum_v cost[v, f_v] + casts  s.t.  sum_v error[v, f_v] <= budget, f_v allowed, groups uniform.

    `cost` and `error` are (n, F) float64, `edges` (m, 2) int64 pairs (producer, consumer), `cast_cost` (m,) float64.
    A cast on edge e = (u, v) costs cast_cost[e] * cast_table[f_u, f_v]; `cast_table` (F, F) has a zero diagonal and is
    1 elsewhere when it is None (Potts). With `shared_casts`, a producer is converted once per format, however many
    consumers ask for it: all its edges with a cast cost have the same one, charged for every distinct format f != f_u
    that their consumers take. Vertices of one `groups` entry take one format (tied weights, module granularity).
    """

    cost: NDArray[np.float64]
    error: NDArray[np.float64]
    allowed: NDArray[np.bool_]
    edges: NDArray[np.int64]
    cast_cost: NDArray[np.float64]
    budget: float
    groups: tuple[tuple[int, ...], ...] = ()
    cast_table: NDArray[np.float64] | None = None
    shared_casts: bool = False


@dataclass(frozen=True)
class Solution:
    """A solved problem. `choice` (n,) indexes formats, or is None when no assignment exists.

    `lower_bound` is exact: a weak-duality bound evaluated in rationals (Neumaier and Shcherbina 2004), so
    `objective - lower_bound` >= the true gap; status `proved-in-model`. `infeasible` says that a Farkas-type bound
    proves that no assignment meets the budget. `price` is the multiplier of the error budget (cost per unit of error),
    inf where no assignment exists.
    `certificate` proves `lower_bound` or the infeasibility: `certificate.check(problem, it)` accepts it.
    `timed_out` says that the clock ended the search, so that another machine may find another solution.
    """

    choice: NDArray[np.int64] | None
    objective: float | None
    error: float | None
    lower_bound: Fraction | None
    gap: float | None
    price: float
    infeasible: bool
    seconds: float
    certificate: Certificate | None = None
    timed_out: bool = False
