"""Proofs of lower bounds on an assignment problem, and their checker: integers only, no scipy, no floating point.

Weak duality. Charge the error budget at a price mu >= 0, and let every reader c of a producer pay a potential
phi[c][f] when it takes format f, which the producer receives. For any mu and phi, and any assignment within budget,

    cost >= -mu * budget + sum over groups of min over f of (cost + mu * error + potentials paid + hubs' own minimum),

where the minimum of a hub whose owner is stored in g runs over the sets S of further formats that it makes copies in:
min_S size * sum_{f in S} table[g][f] - sum_c max over f in S + {g}, f in c's domain, of phi[c][f]. No property of mu
and phi is needed, so multipliers from a floating-point solver need no repair (Neumaier and Shcherbina, "Safe bounds in
linear and mixed-integer linear programming", 2004). With two formats and a fixed price, phi is a flow and the best
bound a minimum cut. Branching on the format of a group closes what duality leaves: a bound on every branch is a bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any

from cohomcli.precision.contraction import Contraction, Domains, Hub, contract
from cohomcli.precision.spec import Problem

Node = Mapping[str, Any]
MOST_BITS = 1 << 14  # of a certificate's potentials: no float needs more, and a hostile file cannot ask for gigabytes


@dataclass(frozen=True)
class Multipliers:
    """A price >= 0 and, per hub and reader, F potentials in units of 2**-bits; a hub without potentials has ()."""

    price: Fraction
    potentials: tuple[tuple[tuple[int, ...], ...], ...]
    bits: int = 0

    def node(self) -> dict[str, Any]:
        """As a leaf of a certificate."""
        return {
            "price": str(self.price),
            "bits": self.bits,
            "potentials": [list(map(list, p)) for p in self.potentials],
        }


@dataclass(frozen=True)
class Certificate:
    """A proof in values that JSON has: `Certificate(**json.loads(json.dumps(asdict(certificate))))` is the same proof.

    `bound` is a fraction "p/q", or None: no assignment exists. `tree` is a leaf (`Multipliers.node()`, or {} where the
    errors alone exceed the budget) or a branch {"vertex": v, "children": {"f": tree}} on the format of the group whose
    first vertex is v, with a child for every format it can still take.
    """

    bound: str | None
    tree: Node


def lower_bound(problem: Problem, multipliers: Multipliers) -> Fraction:
    """A number that no assignment within budget undercuts, whatever the multipliers; the better they are, the closer.

    Raises:
        ValueError: the problem is malformed, a group has no format, or the multipliers do not fit.
    """
    contraction = contract(problem)
    if not all(contraction.domains):
        raise ValueError("a group has no format that all its vertices allow")
    return dual_value(contraction, contraction.domains, multipliers)


def check(problem: Problem, certificate: Certificate) -> bool:
    """Whether the certificate proves its claim about the problem.

    Raises:
        ValueError: the problem itself is malformed.
    """
    contraction = contract(problem)
    try:
        proved = prove(contraction, contraction.domains, certificate.tree)
        claimed = None if certificate.bound is None else fraction(certificate.bound)
    except (KeyError, ValueError, TypeError, RecursionError):
        return False
    if claimed is None:
        return proved is None
    return proved is None or claimed <= proved


def prove(contraction: Contraction, domains: Domains, node: Node) -> Fraction | None:
    """The bound that a tree proves over `domains`; None when it proves that there is no assignment.

    Raises:
        KeyError, TypeError, ValueError: the tree is malformed or leaves a format without a proof.
    """
    tight = tighten(contraction, domains)
    if tight is None:
        return None
    if "children" not in node:
        return dual_bound(contraction, tight, _multipliers(contraction, node))
    group = group_of(contraction, node["vertex"])
    proofs = [prove(contraction, fix(tight, group, f), node["children"][str(f)]) for f in tight[group]]
    return min((p for p in proofs if p is not None), default=None)


def fix(domains: Domains, group: int, fmt: int) -> Domains:
    """The domains with one group's format fixed."""
    return (*domains[:group], (fmt,), *domains[group + 1 :])


def tighten(contraction: Contraction, domains: Domains) -> Domains | None:
    """Drop formats whose error no assignment can afford; None when not even the least errors are within budget.

    With every other group at its least error, format f of a group fits if error[f] <= least + slack: exactly the
    formats that occur in some assignment within budget, so one pass is enough.
    """
    if not all(domains):
        return None
    if contraction.budget is None:
        return domains
    least = [min(errors[f] for f in domain) for errors, domain in zip(contraction.error, domains, strict=True)]
    slack = contraction.budget - sum(least)
    if slack < 0:
        return None
    return tuple(
        tuple(f for f in domain if errors[f] - low <= slack)
        for errors, domain, low in zip(contraction.error, domains, least, strict=True)
    )


def dual_bound(contraction: Contraction, domains: Domains, multipliers: Multipliers) -> Fraction:
    """The dual function, rounded up when every cost is an integer, because then so is every objective."""
    value = dual_value(contraction, domains, multipliers)
    return Fraction(math.ceil(value)) if contraction.integral else value


def dual_value(contraction: Contraction, domains: Domains, multipliers: Multipliers) -> Fraction:
    """The dual function of the module's docstring, exact.

    Raises:
        ValueError: a negative price, a price without a budget, or potentials that do not fit the hubs.
    """
    numerator, denominator = multipliers.price.as_integer_ratio()
    if numerator < 0 or (numerator > 0 and contraction.budget is None):
        raise ValueError("the price must be >= 0, and 0 without a budget")
    # one common unit, 2**-bits / denominator, for costs, priced errors and potentials
    bits = max(contraction.cost_bits, contraction.error_bits, multipliers.bits)
    cost_unit = denominator << (bits - contraction.cost_bits)
    error_unit = numerator << (bits - contraction.error_bits)
    potential_unit = denominator << (bits - multipliers.bits)
    local = [
        {f: cost[f] * cost_unit + error[f] * error_unit for f in domain}
        for cost, error, domain in zip(contraction.cost, contraction.error, domains, strict=True)
    ]
    for hub, rows in zip(contraction.hubs, multipliers.potentials, strict=True):
        paid = [{f: row[f] * potential_unit for f in domains[c]} for c, row in _paired(hub, rows, domains)]
        for c, potentials in zip(hub.consumers, paid, strict=True):
            for f, potential in potentials.items():
                local[c][f] += potential
        for g in domains[hub.owner]:
            prices = [hub.size * cost_unit * price for price in contraction.table[g]]
            local[hub.owner][g] += _hub_minimum(g, prices, paid)
    total = sum(min(values.values()) for values in local) - (contraction.budget or 0) * error_unit
    return Fraction(total, denominator << bits)


def _paired(
    hub: Hub, rows: Sequence[Sequence[int]], domains: Domains
) -> Iterable[tuple[int, Sequence[int] | dict[int, int]]]:
    if not rows:
        return [(c, dict.fromkeys(domains[c], 0)) for c in hub.consumers]
    return zip(hub.consumers, rows, strict=True)


def _hub_minimum(g: int, prices: Sequence[int], paid: Sequence[Mapping[int, int]]) -> int:
    """min over sets S of copies of their prices less what the readers pay, each reading its best of S and g."""
    if len(paid) == 1:
        return min(prices[f] - potential for f, potential in paid[0].items())
    asked = sorted({f for potentials in paid for f in potentials} - {g})
    best: int | None = None
    for size in range(min(len(paid), len(asked)) + 1):
        for copies in combinations(asked, size):
            stored = (g, *copies)
            offers = [[p[f] for f in stored if f in p] for p in paid]
            if all(offers):
                value = sum(prices[f] for f in copies) - sum(map(max, offers))
                best = value if best is None else min(best, value)
    if best is None:
        raise ValueError("a reader has no format")
    return best


def group_of(contraction: Contraction, vertex: int) -> int:
    """The group whose first vertex is `vertex`.

    Raises:
        ValueError: there is none.
    """
    for i, vertices in enumerate(contraction.members):
        if vertices[0] == vertex:
            return i
    raise ValueError(f"no group starts with vertex {vertex}")


def fraction(text: str) -> Fraction:
    """A fraction from "p" or "p/q".

    Raises:
        ValueError: the text is anything else.
    """
    if not re.fullmatch(r"-?[0-9]+(/[1-9][0-9]*)?", text):
        raise ValueError(f"not a fraction: {text!r}")
    return Fraction(text)


def _multipliers(contraction: Contraction, node: Node) -> Multipliers:
    """Read a leaf.

    Raises:
        KeyError, TypeError, ValueError: something is missing, or not the number it must be.
    """
    bits = node["bits"]
    rows = tuple(tuple(tuple(row) for row in hub) for hub in node["potentials"])
    numbers = [bits, *(x for hub in rows for row in hub for x in row)]
    if any(type(x) is not int for x in numbers) or not 0 <= bits <= MOST_BITS:
        raise ValueError("bits and potentials are integers, and the bits are few")
    if any(len(row) != contraction.n_formats for hub in rows for row in hub):
        raise ValueError("a reader has one potential per format")
    return Multipliers(fraction(node["price"]), rows, bits)
