"""From a graph, its sensitivities and the user's wishes to an assignment problem, and from its solution to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cohomcli.errors import UsageError
from cohomcli.precision.costs import Objective, problem_costs
from cohomcli.precision.granularity import Keep, Level, groups, hardware, keep, pinned
from cohomcli.precision.spec import Admissibility, ComputationGraph, Plan, Problem, Sensitivity, Solution


@dataclass(frozen=True)
class Wishes:
    """What is minimised and what the user restricts; `target` is a name of `granularity.HARDWARE` or a table."""

    objective: Objective = "bytes"
    level: Level = "op"
    keep: tuple[Keep, ...] = ()
    target: str | Mapping[str, Sequence[str]] | None = None


def build_problem(
    graph: ComputationGraph,
    sensitivity: Sensitivity,
    admissibility: Admissibility,
    epsilon: float,
    wishes: Wishes = Wishes(),
) -> Problem:
    """The problem whose solutions predict an error of at most `epsilon`, in the units of the sensitivity's norm.

    A format may be taken where it is admissible, the wishes and the target allow it and its score is finite. Fixed
    vertices keep their own format at no error.

    Raises:
        UsageError: a wish is malformed, or leaves a vertex or a group without a format; the reason is named.
        ValueError: sensitivity and admissibility are about different formats.
    """
    formats = sensitivity.formats
    if admissibility.formats != formats:
        raise ValueError(f"sensitivity is about {formats}, admissibility about {admissibility.formats}")
    fixed = np.array([bool(v.fixed) for v in graph.vertices])
    admissible = (admissibility.allowed & np.isfinite(sensitivity.scores)) | fixed[:, None]
    wanted = keep(graph, formats, wishes.keep) & pinned(graph, formats)
    if wishes.target is not None:
        wanted &= hardware(graph, formats, wishes.target)
    allowed = admissible & wanted
    costs = problem_costs(graph, formats, wishes.objective)
    together = groups(graph, wishes.level)
    _refuse_dead_ends(graph, admissibility, allowed, together)
    return Problem(
        cost=costs.cost,
        error=np.where(fixed[:, None], 0.0, sensitivity.scores),
        allowed=allowed,
        edges=costs.edges,
        cast_cost=costs.cast_cost,
        budget=epsilon * epsilon,
        groups=together,
        cast_table=costs.cast_table,
        shared_casts=True,
    )


def plan_of(graph: ComputationGraph, formats: Sequence[str], solution: Solution) -> Plan:
    """The plan that a solution chooses.

    Raises:
        ValueError: the solution is that there is none.
    """
    if solution.choice is None:
        raise ValueError("an infeasible problem has no plan")
    chosen = zip(graph.vertices, solution.choice.tolist(), strict=True)
    return Plan(tuple("" if v.fixed else formats[f] for v, f in chosen))


def _refuse_dead_ends(
    graph: ComputationGraph,
    admissibility: Admissibility,
    allowed: NDArray[np.bool_],
    together: tuple[tuple[int, ...], ...],
) -> None:
    """Name the first vertex, or group, that no format is left for, and why the formats are not admissible there."""
    for v in graph.vertices:
        if not allowed[v.index].any():
            reasons = [admissibility.reasons.get((v.index, f), "") for f in admissibility.formats]
            why = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
            raise UsageError(f"no format is left for {v.name}" + (f": {why}" if why else ""), "allow a wider format")
    for group in together:
        if not allowed[list(group)].all(axis=0).any():
            names = ", ".join(graph.vertices[v].name for v in group[:3]) + (", ..." if len(group) > 3 else "")
            raise UsageError(f"no format suits all of {names}", "allow a wider format or a finer granularity")
