"""The optimality of a plan in its model: no assignment within the error budget costs less, or there is none at all.

The proof is a tree of multipliers, checked in integers by weak duality (`precision.certificate`); it is about the
stated costs and scores, not about the hardware.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cohomcli.precision.certificate import Certificate
from cohomcli.precision.certificate import check as proves
from cohomcli.precision.spec import Problem
from cohomcli.verify.document import Context, Rejected, canonical
from cohomcli.verify.kinds.common import Kind, input_id, subject


def statement(document: Mapping[str, Any]) -> str:
    """The sentence."""
    claim = document["claim"]
    limit = f"a summed score of at most {float.fromhex(claim['budget'])!r} (epsilon {claim['epsilon']!r})"
    formats = ", ".join(claim["formats"])
    shared = "shared" if claim["shared_casts"] else "single"
    groups = hashlib.sha256(canonical(claim["groups"]).encode()).hexdigest()[:12]
    problem = (
        f"assignment problem {input_id(document, 'problem')} of {subject(document)}, groups {groups}, {shared} casts"
    )
    if claim["bound"] is None:
        return f"In the {problem}: no assignment of {formats} has {limit}."
    return f"In the {problem}: no assignment of {formats} with {limit} costs less than {claim['bound']}."


def check(context: Context) -> None:
    """Read the problem and check its multipliers in exact integers."""
    claim = context.claim
    parts = context.tensors("problem")
    if not {"cost", "error", "allowed", "edges", "cast_cost"} <= set(parts) <= {
        "cost", "error", "allowed", "edges", "cast_cost", "cast_table",
    }:  # fmt: skip
        raise Rejected("the problem has not its parts")
    if type(claim["shared_casts"]) is not bool:
        raise Rejected("casts are shared or not")
    if parts["cost"].ndim != 2 or parts["cost"].shape[1] != len(claim["formats"]):
        raise Rejected("the problem has not one column per format")
    problem = Problem(
        cost=parts["cost"],
        error=parts["error"],
        allowed=parts["allowed"],
        edges=parts["edges"],
        cast_cost=parts["cast_cost"],
        budget=float.fromhex(claim["budget"]),
        groups=tuple(tuple(group) for group in claim["groups"]),
        cast_table=parts.get("cast_table"),
        shared_casts=claim["shared_casts"],
    )
    if not proves(problem, Certificate(claim["bound"], claim["tree"])):
        raise Rejected("the multipliers do not prove the bound")


def parts_of(problem: Problem) -> dict[str, Any]:
    """The tensors and claim fields that `check` reads a problem from."""
    table = {} if problem.cast_table is None else {"problem:cast_table": np.asarray(problem.cast_table, np.float64)}
    return {
        "problem:cost": np.asarray(problem.cost, np.float64),
        "problem:error": np.asarray(problem.error, np.float64),
        "problem:allowed": np.asarray(problem.allowed, np.bool_),
        "problem:edges": np.asarray(problem.edges, np.int64),
        "problem:cast_cost": np.asarray(problem.cast_cost, np.float64),
    } | table


KEYS = frozenset({"bound", "budget", "epsilon", "formats", "groups", "shared_casts", "tree"})
KIND = Kind("proved-in-model", KEYS, statement, check)
