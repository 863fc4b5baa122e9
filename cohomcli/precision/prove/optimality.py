"""The optimality certificate of a solved assignment problem, written for the checker."""

from __future__ import annotations

from collections.abc import Sequence

from cohomcli.precision.prove.package import Package, Written
from cohomcli.precision.spec import Problem, Solution
from cohomcli.verify.kinds.optimality import parts_of


def write_optimality(
    package: Package, problem: Problem, solution: Solution, formats: Sequence[str], epsilon: float
) -> Written | None:
    """Write the solution's lower bound or infeasibility; None when it has no certificate or the checker refuses it."""
    if solution.certificate is None:
        return None
    claim = {
        "bound": solution.certificate.bound,
        "budget": float(problem.budget).hex(),
        "epsilon": epsilon,
        "formats": list(formats),
        "groups": [[int(v) for v in group] for group in problem.groups],
        "shared_casts": bool(problem.shared_casts),
        "tree": solution.certificate.tree,
    }
    return package.write("optimality", "optimality", claim, parts_of(problem))
