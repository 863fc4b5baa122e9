"""The cheapest assignment of formats under an error budget, with a proof of how close to the best it is.

Relax, round, let HiGHS search, and prove: an exact lower bound from the relaxation's multipliers, branched on the
format of single groups until the gap is small enough. Work is limited by nodes and leaves, so that equal problems have
equal solutions everywhere; the clock is the last resort, and a solution says when it struck. The answer is the best
assignment that passed the exact check; the solver's own claims are not used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.precision.certificate import Certificate, Multipliers, dual_bound, fix, tighten
from cohomcli.precision.contraction import Contraction, Domains, contract
from cohomcli.precision.descent import Descent
from cohomcli.precision.relaxation import Relaxation, price_only
from cohomcli.precision.spec import Problem, Solution

FIRST_LEAVES = 12  # branches before HiGHS's own search: on transformer graphs they close the gap 2 to 4 times sooner
# Work, counted in groups times leaves of our tree and times nodes of HiGHS's: a second or two each on one core.
LEAF_WORK, NODE_WORK = 20_000, 200_000
FRACTIONAL = 1e-6
HUGE = 1 << 1023
SEARCH_SHARE = 0.5  # of the time that is left then, for HiGHS's own search


def solve(
    problem: Problem,
    time_limit: float = 30.0,
    rel_gap: float = 1e-3,
    starts: Sequence[Sequence[int]] = (),
) -> Solution:
    """The cheapest assignment found, and a certificate of a lower bound or of infeasibility.

    Stops when the certified gap is at most `rel_gap` of the objective, after the work of LEAF_WORK and NODE_WORK, or,
    as the last resort, after about `time_limit` CPU seconds. A feasible
    assignment is returned whenever one exists. `starts`, formats of the vertices (n,) each, are starting points: the
    answer is never worse than one of them that is admissible and within budget.

    Raises:
        ValueError: the problem is malformed.
    """
    started = time.process_time()
    contraction = contract(problem)
    domains = tighten(contraction, contraction.domains)
    if domains is None:
        return _infeasible(time.process_time() - started)
    search = _Search(contraction, domains, started + time_limit, rel_gap)
    for start in starts:
        search.offer(contraction.contract(start))
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
    """One solve: the best assignment so far, and the open leaves of the tree that bounds what is left."""

    def __init__(self, contraction: Contraction, domains: Domains, deadline: float, rel_gap: float) -> None:
        self.contraction = contraction
        self.domains = domains
        self.deadline = deadline
        self.rel_gap = Fraction(rel_gap)
        self.relaxation = Relaxation(contraction, domains)
        self.descent = Descent(contraction, domains)
        self.best = self.descent.most_accurate()
        self.best_cost = contraction.objective(self.best)
        self.leaves: list[_Leaf] = []
        self.timed_out = False

    def offer(self, choice: Sequence[int]) -> None:
        """Take an assignment as the best one if it is admissible, within budget and cheaper, all checked exactly."""
        admissible = all(f in domain for f, domain in zip(choice, self.domains, strict=True))
        if admissible and self.contraction.within_budget(choice):
            cost = self.contraction.objective(choice)
            if cost < self.best_cost:
                self.best, self.best_cost = list(choice), cost

    def solve(self, started: float) -> Solution:
        """Relax, branch a little, let HiGHS search, branch on; say what was found and proved."""
        self._polish(self.best)
        root = self._leaf(self.domains, price_only(self.contraction, self.domains))
        if root is None:
            raise AssertionError("tightened domains hold an assignment")
        self.leaves = [root]
        self._branch(FIRST_LEAVES)
        n = max(1, len(self.domains))
        if self._open():
            seconds = self._seconds_left() * SEARCH_SHARE
            began = time.process_time()
            found = self.relaxation.integer(seconds, float(self.rel_gap) / 2, NODE_WORK // n + 1)
            self.timed_out |= time.process_time() - began >= seconds
            if found is not None:
                self._polish(found)
        self._branch(FIRST_LEAVES + LEAF_WORK // n)
        return self._solution(root, time.process_time() - started)

    def _solution(self, root: _Leaf, seconds: float) -> Solution:
        for leaf in self.leaves:
            leaf.node |= leaf.multipliers.node()
        bound = self._bound()
        gap = self.best_cost - bound
        return Solution(
            choice=np.asarray(self.contraction.expand(self.best), dtype=np.int64),
            objective=float(self.best_cost),
            error=float(Fraction(self.contraction.error_of(self.best), 1 << self.contraction.error_bits)),
            lower_bound=bound,
            gap=float(gap / abs(self.best_cost)) if gap else 0.0,
            price=float(root.multipliers.price) if root.multipliers.price < HUGE else math.inf,
            infeasible=False,
            seconds=seconds,
            certificate=Certificate(str(bound), root.node),
            timed_out=self.timed_out or (self._wide() and self._seconds_left() <= 0),
        )

    def _polish(self, choice: Sequence[int]) -> None:
        self.offer(choice)  # as it is: descent keeps a hair away from the budget, which may be met exactly
        self.offer(self.descent.descend(self.descent.repair(choice)))

    def _seconds_left(self) -> float:
        return self.deadline - time.process_time()

    def _bound(self) -> Fraction:
        return min(leaf.bound for leaf in self.leaves)

    def _open(self) -> bool:
        """Whether the certified gap is too large and there is time to do something about it."""
        return self._wide() and self._seconds_left() > 0

    def _wide(self) -> bool:
        return self.best_cost - self._bound() > self.rel_gap * abs(self.best_cost)

    def _leaf(self, domains: Domains, known: Multipliers) -> _Leaf | None:
        """Relax over `domains`, round, and bound; None when the errors alone rule the branch out.

        `known` multipliers serve where HiGHS does not finish in time.
        """
        tight = tighten(self.contraction, domains)
        if tight is None:
            return None
        point = self.relaxation.relax(tight, self._seconds_left()) if self._seconds_left() > 0 else None
        multipliers = known if point is None else point.multipliers
        if point is not None:
            share = point.share
            self._polish([max(domain, key=share[i].__getitem__) for i, domain in enumerate(tight)])
        bound = dual_bound(self.contraction, tight, multipliers)
        return _Leaf(tight, multipliers, bound, None if point is None else point.share)

    def _branch(self, most: int) -> None:
        """Split the leaf with the lowest bound until the gap is closed, the time is up or there are `most` leaves."""
        while len(self.leaves) < most and self._open():
            leaf = min(self.leaves, key=lambda leaf: leaf.bound)
            group = self._branching_group(leaf)
            if group is None:
                return
            children = {f: self._leaf(fix(leaf.domains, group, f), leaf.multipliers) for f in leaf.domains[group]}
            leaf.node["vertex"] = self.contraction.members[group][0]
            leaf.node["children"] = {str(f): {} if child is None else child.node for f, child in children.items()}
            self.leaves = [other for other in self.leaves if other is not leaf]
            self.leaves += [child for child in children.values() if child is not None]

    def _branching_group(self, leaf: _Leaf) -> int | None:
        """The group with the largest fractional share of cost in the relaxed point; None when none has a choice."""
        undecided = [i for i, domain in enumerate(leaf.domains) if len(domain) > 1]
        return max(undecided, key=lambda i: self._weight(leaf, i), default=None)

    def _weight(self, leaf: _Leaf, i: int) -> tuple[float, int]:
        costs = [self.contraction.cost[i][f] for f in leaf.domains[i]]
        spread = max(costs) - min(costs)
        if leaf.share is None:
            return 0.0, spread
        split = 1.0 - float(leaf.share[i].max())
        return (split if split > FRACTIONAL else 0.0) * (spread / (1 << self.contraction.cost_bits)), spread
