"""Experimental: the balance class of a captured model, from how much every op amplifies the error of each operand.

The relative amplification of edge (u, v) is a = sqrt(E ||J_vu (u e)||^2) / ||v|| over independent relative errors e of
unit variance in the entries of u, estimated as sqrt(mean_k ||u * J_vu^T lambda_k||^2) / ||v|| from Gaussian directions
(Hutchinson). Its logarithm is the gain whose sums around loops `precision.balance` looks at: where two branches meet
again, one may ask more bits of their common source than the other. Nothing in a plan depends on it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from cohomcli.precision.adjoint import Sweep, record
from cohomcli.precision.balance import balance
from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import masked_entries
from cohomcli.precision.result import BalanceEdge, BalanceSummary
from cohomcli.precision.spec import Vertex

N_PROBES = 4
N_EDGES = 15  # of the summary
STREAM = 0x5EAF  # away from the stream that random inputs of the same seed come from: they must be independent
ROUNDING = 1e-6  # bits: sums of logarithms around a loop below this are zero


def amplifications(captured: Captured, inputs: Any, seed: int = 0) -> dict[tuple[int, int], float]:
    """a > 0 of every edge between ops (or an input and an op) whose errors reach an output (estimated, experimental).

    Entries that an additive mask made do not count; edges that amplify nothing are left out.

    Raises:
        AnalysisIncomplete: an op has no derivative.
    """
    recording = record(captured, inputs)
    sweep = Sweep(recording, [])
    generator = torch.Generator().manual_seed(seed + STREAM)
    vertices, values = captured.graph.vertices, recording.values
    found: dict[tuple[int, int], float] = {}
    for v in vertices:
        if v.index not in sweep.active or v.kind != "op":
            continue
        operands = [u for u in v.operands if u in sweep.active or _real_input(vertices[u])]
        shown = _visible(v, values[v.index])
        size = float(shown.norm())
        if not operands or not (0.0 < size < math.inf):
            continue
        directions = torch.randn((N_PROBES, *shown.shape), generator=generator, dtype=shown.dtype)
        if v.mask_level:
            directions = directions.masked_fill(masked_entries(v, values[v.index]), 0.0)
        for u, pulled in zip(operands, sweep.local(v.index, operands, directions), strict=True):
            if pulled is not None:
                scaled = torch.where(pulled == 0, 0.0, pulled * _visible(vertices[u], values[u]))
                gain = math.sqrt(float(scaled.double().square().sum()) / N_PROBES) / size
                if 0.0 < gain < math.inf:
                    found[u, v.index] = gain
    return found


def _real_input(vertex: Vertex) -> bool:
    return vertex.kind == "input" and vertex.dtype.startswith("float")


def _visible(vertex: Vertex, value: torch.Tensor) -> torch.Tensor:
    return value.masked_fill(masked_entries(vertex, value), 0.0) if vertex.mask_level else value


def balance_of(captured: Captured, inputs: Any, seed: int = 0) -> BalanceSummary | None:
    """The balance class of a model on one input (experimental); None where no op reads another.

    Raises:
        AnalysisIncomplete: an op has no derivative, or the linear programme was not solved.
    """
    gains = amplifications(captured, inputs, seed)
    if not gains:
        return None
    vertices = captured.graph.vertices
    edges = np.array(list(gains), dtype=np.int64)
    found = balance(len(vertices), edges, np.log2(np.array(list(gains.values()))))
    worst = np.argsort(-np.abs(found.waste), kind="stable")[:N_EDGES]
    return BalanceSummary(
        n_loops=len(found.class_coordinates),
        n_unbalanced=int((np.abs(found.class_coordinates) > ROUNDING).sum()),
        waste=found.total,
        certified=found.certified,
        edges=tuple(
            BalanceEdge(vertices[u].name, vertices[u].module, vertices[v].name, vertices[v].module, float(waste))
            for (u, v), waste in zip(edges[worst].tolist(), found.waste[worst].tolist(), strict=True)
            if abs(waste) > ROUNDING
        ),
    )
