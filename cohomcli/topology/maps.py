"""Distances between analysed models as one matrix, and a flat map of it by multidimensional scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohomcli.progress import Progress, silent
from cohomcli.topology.diagramdrift import diagram_drift
from cohomcli.topology.drift import DIAGRAMS, Subject, bounded_distance
from cohomcli.topology.measure import representation
from cohomcli.topology.measures import MEASURES
from cohomcli.topology.results import Array, LayerTopology
from cohomcli.topology.stack import stack_of

STEP = "distances"
MOST_DEPTHS = 12
LARGEST = 30
"""Rows a matrix is computed for: the work grows with their square."""


@dataclass(frozen=True)
class ModelMap:
    """Distances between rows, in [0, 1], and their positions in the plane.

    `values[i][j]` is the mean over `n_depths` relative depths of the drift between the layers of row i and row j that
    are nearest to that depth; None where it is not defined, as for other texts. `positions` are (x, y) per row, None
    with `reason` when there are fewer than 3 rows or a distance is missing. `stress` is Kruskal's stress-1 of the map:
    the share of the distances, in root mean square, that the plane cannot show.
    """

    measure: str
    n_depths: int
    values: tuple[tuple[float | None, ...], ...]
    positions: tuple[tuple[float, float], ...] | None
    stress: float | None
    reason: str = ""


def model_map(subjects: Sequence[Subject], measure: str, seed: int = 0, progress: Progress = silent) -> ModelMap:
    """The distances between all `subjects` under a bounded `measure`, and their map.

    At most `LARGEST` subjects get a matrix; more come back as an empty one with the reason.

    Raises:
        AnalysisIncomplete: stored activations are not finite.
    """
    if len(subjects) > LARGEST:
        reason = f"distances are computed for at most {LARGEST} analyses, these are {len(subjects)}"
        return ModelMap(measure, 0, (), None, None, reason)
    stacks = [_stack(subject.layers) for subject in subjects]
    n_depths = min(MOST_DEPTHS, *(len(stack) for stack in stacks))
    total = np.zeros((len(subjects), len(subjects)))
    for at in range(n_depths):
        progress(STEP, at, n_depths)
        layers = [_at_depth(stack, at / max(n_depths - 1, 1)) for stack in stacks]
        total += _distances(subjects, layers, measure)
    progress(STEP, n_depths, n_depths)
    mean = total / n_depths if n_depths else np.full_like(total, math.nan)
    values = tuple(tuple(None if math.isnan(v) else float(v) for v in row) for row in mean)
    if len(subjects) < 3:
        return ModelMap(measure, n_depths, values, None, None, "a map needs three analyses")
    if np.isnan(mean).any():
        return ModelMap(measure, n_depths, values, None, None, "some distances are not defined")
    positions, stress = flat_map(mean, seed)
    return ModelMap(measure, n_depths, values, tuple((float(x), float(y)) for x, y in positions), stress)


def _stack(layers: Sequence[LayerTopology]) -> list[LayerTopology]:
    stack = stack_of(layers)
    return [*([stack.embedding] if stack.embedding else []), *stack.blocks] or list(layers)


def _at_depth(stack: Sequence[LayerTopology], depth: float) -> LayerTopology:
    """The layer nearest to a relative depth in [0, 1]: 0 is the first of the stack, 1 the last."""
    return stack[math.floor(depth * (len(stack) - 1) + 0.5)]


def _distances(subjects: Sequence[Subject], layers: Sequence[LayerTopology], measure: str) -> Array:
    """One depth's symmetric matrix, with a zero diagonal and NaN where two subjects cannot be compared."""
    n = len(subjects)
    values = np.full((n, n), math.nan)
    np.fill_diagonal(values, 0.0)
    prepared = [_prepare(subject, layer, measure) for subject, layer in zip(subjects, layers, strict=True)]
    for i in range(n):
        for j in range(i + 1, n):
            if subjects[i].texts == subjects[j].texts:
                values[i, j] = values[j, i] = _compare(prepared[i], prepared[j], measure)
    return values


def _prepare(subject: Subject, layer: LayerTopology, measure: str) -> Any:
    if measure == DIAGRAMS:
        return layer
    assert subject.activations is not None
    return MEASURES.get(measure).prepare(representation(subject.activations.layer(layer.name)))


def _compare(a: Any, b: Any, measure: str) -> float:
    """The drift between two prepared layers; where the measure has a direction, the mean of both."""
    if measure == DIAGRAMS:
        return diagram_drift(a, b)
    chosen = MEASURES.get(measure)
    value = chosen.compare(a, b) if chosen.symmetric else (chosen.compare(a, b) + chosen.compare(b, a)) / 2
    return bounded_distance(value, chosen)


def flat_map(distances: Array, seed: int = 0) -> tuple[Array, float]:
    """Positions (n, 2) whose distances follow `distances` (n, n) best, and the stress-1 that remains.

    Metric multidimensional scaling by SMACOF (de Leeuw 1977; Borg, Groenen 2005, chapter 8) in scikit-learn, begun at
    the classical solution (Torgerson 1952) so that equal input gives an equal map. Centred, turned so that x has most
    of the spread, and signed so that the first row lies at x <= 0 and y <= 0.
    """
    from sklearn.manifold import smacof

    if not distances.any():
        return np.zeros((len(distances), 2)), 0.0
    start = _classical(distances)
    positions, _ = smacof(
        distances, n_components=2, init=start, n_init=1, max_iter=1000, eps=1e-12, random_state=seed,
        normalized_stress=False,
    )  # fmt: skip
    positions = positions - positions.mean(axis=0)
    _, _, axes = np.linalg.svd(positions, full_matrices=False)
    positions = positions @ axes.T
    positions = positions * np.where(positions[0] > 0, -1.0, 1.0)
    apart = np.linalg.norm(positions[:, None] - positions[None, :], axis=2)
    return positions, float(np.sqrt(np.square(apart - distances).sum() / np.square(distances).sum()))


def _classical(distances: Array) -> Array:
    """The two leading principal coordinates of a distance matrix (Torgerson 1952)."""
    n = len(distances)
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-centring @ np.square(distances) @ centring / 2)
    coordinates: Array = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0.0))
    return coordinates
