"""How much the effect of each store varies from input to input, so that a plan does not rely on a lucky one.

Scores are taken on few inputs. Where attention nearly ties, or a norm nearly vanishes, the same store matters a hundred
times more on one input than on most. The relative sensitivity R_v = mean_k sum_j (g_kj v_j)^2, what rounding v with a
unit relative error would do, needs one forward run and a few adjoints per input and no format. Its spread over the
calibration inputs gives each vertex a factor from the inputs scored to one that nobody has seen. Near ties are events
of single rows, one position of one head: the rows of all inputs are a far larger sample than the inputs, and show the
tail of such events even when none of them has yet outweighed a whole input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cohomcli.precision.adjoint import Sweep, record
from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import masked_entries
from cohomcli.precision.output_norm import OutputNorm
from cohomcli.precision.spec import ErrorNorm
from cohomcli.precision.unseen import PRIOR_SPREAD, pareto_quantile, predictive_quantile, tail_quantile
from cohomcli.progress import Progress, silent

N_PROBES = 4
LEVEL = 1e-2
SMALLEST = 1e-6  # of a vertex's largest sensitivity
FEWEST_ROWS, FEWEST_IN_TAIL = 64, 8  # over all inputs, to see the tail of single rows
SMALLEST_ROW = 1e-4  # of the largest row: smaller ones are no part of its tail
LARGEST = 1e12  # factor: beyond it a store is out of the question anyway

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Relative:
    """`total` (n_inputs, n_vertices): R of every op; of a weight the largest of its readers; 0 where nothing depends.

    `rows[v]` (n_inputs, n_rows): the same of an op, row by row along the last dimension.
    """

    total: Floats
    rows: dict[int, Floats]
    readers: dict[int, tuple[int, ...]]


def relative_sensitivities(
    captured: Captured,
    inputs: Sequence[Any],
    norm: OutputNorm,
    seed: int = 0,
    progress: Progress = silent,
) -> Relative:
    """R of every vertex on every input, to first order from N_PROBES random adjoints; `norm` is bound to `inputs`.

    Raises:
        AnalysisIncomplete: an op has no derivative.
    """
    vertices = captured.graph.vertices
    total = np.zeros((len(inputs), len(vertices)))
    rows: dict[int, list[Floats]] = {}
    generator = torch.Generator().manual_seed(seed)
    for at, example in enumerate(inputs):
        progress("variation", at, len(inputs))
        recording = record(captured, example)
        alone = replace(norm, references=norm.references[at : at + 1], weights=norm.weights[at : at + 1])
        seeds = alone.seeds(0, N_PROBES, generator, torch.float32)
        found: dict[int, Floats] = {}

        def visit(vertex: int, cotangents: torch.Tensor, found: Any = found, values: Any = recording.values) -> None:
            found[vertex] = _rows(captured, vertex, values[vertex], cotangents)

        Sweep(recording, seeds).run(visit)
        for vertex, values in found.items():
            total[at, vertex] = values.sum()
            rows.setdefault(vertex, []).append(values)
    progress("variation", len(inputs), len(inputs))
    readers: dict[int, tuple[int, ...]] = {}
    for v in vertices:
        for u in v.operands:
            if vertices[u].kind == "weight":
                total[:, u] = np.maximum(total[:, u], total[:, v.index])
                readers[u] = (*readers.get(u, ()), v.index)
    return Relative(total, {v: np.stack(r) for v, r in rows.items() if len(r) == len(inputs)}, readers)


def _rows(captured: Captured, vertex: int, value: torch.Tensor, cotangents: torch.Tensor) -> Floats:
    v = captured.graph.vertices[vertex]
    if not value.is_floating_point() or not value.numel():
        return np.zeros(1)
    if v.mask_level:
        value = value.masked_fill(masked_entries(v, value), 0.0)
    squares = (cotangents * value).square_().mean(0)
    found: Floats = squares.sum(-1).flatten().nan_to_num(0.0, 0.0, 0.0).double().numpy()
    return found


def unseen_factors(relative: Relative, n_scored: int, norm: ErrorNorm) -> Floats:
    """Factors (n_vertices,) >= 1 from the mean of the first `n_scored` inputs to one input in 1 / LEVEL (estimated)."""
    total = relative.total
    factors = np.ones(total.shape[1])
    spread = PRIOR_SPREAD[norm] * (1.0 if norm == "kl" else 2.0)  # of a square
    for v in np.flatnonzero(total.max(axis=0) > 0.0):
        column = total[:, v] / total[:, v].max()
        logs = np.log(np.maximum(column, SMALLEST))
        high = np.exp(max(predictive_quantile(logs, spread, LEVEL), tail_quantile(logs, LEVEL), 0.0))
        ops = relative.readers.get(int(v), (int(v),))
        event = max((_row_event(relative.rows[u]) for u in ops if u in relative.rows), default=0.0)
        high = max(high, float(np.median(column)) + event / total[:, v].max())
        factors[v] = min(max(1.0, high / max(column[:n_scored].mean(), SMALLEST)), LARGEST)
    return factors


def _row_event(rows: Floats) -> float:
    """The largest row that one input in 1 / LEVEL has, by the Pareto tail of all rows seen.

    Rows far below the largest belong to no tail of it: of a model that reads off one position, the other positions'
    rows are next to nothing, and an index that spans both kinds would mean nothing either.
    """
    positive = np.sort(rows[rows > 0.0])[::-1]
    if len(positive) < FEWEST_ROWS or rows.shape[1] < 2:
        return 0.0
    logs = np.log(positive)
    k = min(int(np.sqrt(len(logs))), int((positive >= SMALLEST_ROW * positive[0]).sum()) - 1)
    if k < FEWEST_IN_TAIL:
        return 0.0
    return float(np.exp(pareto_quantile(logs, k, LEVEL / rows.shape[1])))
