"""The cheapest assignment of formats under an error budget, with a proof of how close to the best it is.

Relax, round, let HiGHS search, and prove: an exact lower bound from the relaxation's multipliers, branched on the
format of single groups until the gap is small enough or the time is up. The answer is the best assignment that passed
the exact check; the solver's own claims are not used.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.precision.certificate import Certificate, Multipliers, dual_value
from cohomcli.precision.contraction import Contraction, Domains, contract
from cohomcli.precision.descent import Descent
from cohomcli.precision.reductions import dominated, fix, tighten
from cohomcli.precision.relaxation import Relaxation, RelaxedPoint
from cohomcli.precision.spec import Problem, Solution

SEARCH_SHARE = 0.5  # of the time that is left after the first relaxation, for HiGHS's own search
MOST_LEAVES = 400


def solve(
    problem: Problem,
    time_limit: float = 30.0,
    rel_gap: float = 1e-3,
    incumbent: Sequence[int] | None = None,
) -> Solution:
    """The cheapest assignment found, and a certificate of a lower bound or of infeasibility.

    Stops when the certified gap is at most `rel_gap` of the objective, or after about `time_limit` seconds. A feasible
    assignment is returned whenever one exists. `incumbent` (n,), formats of the vertices, is a starting point that the
    answer is never worse than, if it is admissible and within budget.

    Raises:
        ValueError: the problem is malformed.
    """
    started = time.monotonic()
    contraction = contract(problem)
    domains = tighten(contraction, contraction.domains)
    if domains is None:
        return _infeasible(time.monotonic() - started)
    search = _Search(contraction, domains, started + time_limit, rel_gap)
    if incumbent is not None:
        search.offer(contraction.contract(incumbent))
    return search.solve(started)


def _infeasible(seconds: float) -> Solution:
    """The least errors exceed the budget: a proof without multipliers."""
    return Solution(
        choice=None,
        objective=None,
        error=None,
        lower_bound=None,
        gap=None,
        price=float("inf"),
        infeasible=True,
        seconds=seconds,
        certificate=Certificate(bound=None, tree={}),
    )


@dataclass
class _Leaf:
    """An open branch: its domains, its multipliers, the bound they prove and the relaxed point to branch on."""

    domains: Domains
    multipliers: Multipliers
    bound: Fraction
    share: NDArray[np.float64] | None
    node: dict[str, Any] = field(default_factory=dict)


class _Search:
    """One solve: the best assignment so far and the tree that bounds what is left."""

    def __init__(self, contraction: Contraction, domains: Domains, deadline: float, rel_gap: float) -> None:
        self.contraction = contraction
        self.admissible = domains
        self.domains, self.steps = dominated(contraction, domains)
        self.deadline = deadline
        self.rel_gap = Fraction(rel_gap)
        self.relaxation = Relaxation(contraction, self.domains)
        self.descent = Descent(contraction, self.domains)
        self.best = self.descent.most_accurate()
        self.best_cost = contraction.objective(self.best)

    def offer(self, choice: Sequence[int]) -> None:
        """Take an assignment as the best one if it is admissible, within budget and cheaper, all checked exactly."""
        admissible = all(f in domain for f, domain in zip(choice, self.admissible, strict=True))
        if admissible and self.contraction.within_budget(choice):
            cost = self.contraction.objective(choice)
            if cost < self.best_cost:
                self.best, self.best_cost = list(choice), cost

    def polish(self, choice: Sequence[int]) -> None:
        """Repair, descend, offer."""
        self.offer(self.descent.descend(self.descent.repair(choice)))

    def time_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def closed(self, bound: Fraction) -> bool:
        """Whether the gap to `bound` is small enough."""
        return self.best_cost - bound <= self.rel_gap * abs(self.best_cost)

    def leaf(self, domains: Domains, parent: _Leaf | None) -> _Leaf | None:
        """Relax over `domains`, round, and bound; None when the errors alone rule the branch out."""
        tight = tighten(self.contraction, domains)
        if tight is None:
            return None
        point = self.relaxation.relax(tight, self.time_left()) if self.time_left() > 0 else None
        zero = Multipliers(Fraction(0), tuple(() for _ in self.contraction.hubs))
        candidates = [zero if parent is None else parent.multipliers]
        if point is not None:
            candidates.append(point.multipliers)
            self._round(point, tight)
        bound, multipliers = max(
            ((dual_value(self.contraction, tight, m), m) for m in candidates), key=lambda pair: pair[0]
        )
        return _Leaf(tight, multipliers, bound, None if point is None else point.share)

    def _round(self, point: RelaxedPoint, domains: Domains) -> None:
        choice = [max(domain, key=lambda f, i=i: point.share[i, f]) for i, domain in enumerate(domains)]  # type: ignore[misc]
        self.polish(choice)

    def solve(self, started: float) -> Solution:
        """Search, prove, and say what was found."""
        self.polish(self.best)
        root = self.leaf(self.domains, None)
        assert root is not None, "an assignment exists: the domains were tightened"
        if not self.closed(root.bound) and self.time_left() > 0:
            found = self.relaxation.integer(self.time_left() * SEARCH_SHARE, float(self.rel_gap) / 2)
            if found is not None:
                self.polish(found)
        bound = self._branch(root)
        if self.contraction.integral:
            bound = Fraction(math.ceil(bound))
        certificate = Certificate(str(bound), root.node, [self._step(*step) for step in self.steps])
        gap = self.best_cost - bound
        return Solution(
            choice=np.asarray(self.contraction.expand(self.best), dtype=np.int64),
            objective=float(self.best_cost),
            error=float(Fraction(self.contraction.error_of(self.best), 1 << self.contraction.error_bits)),
            lower_bound=bound,
            gap=float(gap / abs(self.best_cost)) if gap else 0.0,
            price=float(root.multipliers.price),
            infeasible=False,
            seconds=time.monotonic() - started,
            certificate=certificate,
        )

    def _step(self, step: tuple[int, int], groups: frozenset[int]) -> dict[str, Any]:
        """A reduction as the certificate writes it."""
        vertices = sorted(self.contraction.members[i][0] for i in groups)
        return {"drop": step[0], "keep": step[1], "vertices": vertices}

    def _branch(self, root: _Leaf) -> Fraction:
        """Split the branch with the lowest bound until the gap is closed or the time is up; the bound of all."""
        heap = [(root.bound, 0, root)]
        count = 1
        while heap and len(heap) < MOST_LEAVES and self.time_left() > 0 and not self.closed(heap[0][0]):
            leaf = heap[0][2]
            group = self._branching_group(leaf)
            if group is None:
                break
            children = {}
            for f in leaf.domains[group]:
                child = self.leaf(fix(leaf.domains, group, f), leaf)
                children[str(f)] = {} if child is None else child.node
                if child is not None:
                    heapq.heappush(heap, (child.bound, count, child))
                    count += 1
            leaf.node |= {"vertex": self.contraction.members[group][0], "children": children}
            heap = [entry for entry in heap if entry[2] is not leaf]
            heapq.heapify(heap)
        for _, _, leaf in heap:
            leaf.node |= leaf.multipliers.node()
        return min((leaf.bound for _, _, leaf in heap), default=self.best_cost)

    def _branching_group(self, leaf: _Leaf) -> int | None:
        """The group with the largest fractional share of cost in the relaxed point; None when none has a choice."""
        open_groups = [i for i, domain in enumerate(leaf.domains) if len(domain) > 1]
        if not open_groups:
            return None
        return max(open_groups, key=lambda i: self._weight(leaf, i))

    def _weight(self, leaf: _Leaf, i: int) -> tuple[float, int]:
        costs = [self.contraction.cost[i][f] for f in leaf.domains[i]]
        spread = max(costs) - min(costs)
        if leaf.share is None:
            return 0.0, spread
        split = 1.0 - max(leaf.share[i, f] for f in leaf.domains[i])
        return (split if split > 1e-6 else 0.0) * (spread / (1 << self.contraction.cost_bits)), spread
