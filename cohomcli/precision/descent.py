"""Feasible assignments by greedy moves: repair until the error is within budget, then descend in cost."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction

from cohomcli.precision.contraction import Contraction, Domains

Move = tuple[int, int]  # (group, its new format)


class Descent:
    """Moves of one group at a time on a contraction, with exact costs and with errors as shares of the slack.

    Shares are floats; rounding in their sums cannot harm: callers check every assignment exactly, and `margin` of the
    slack stays unused.
    """

    def __init__(self, contraction: Contraction, domains: Domains, margin: float = 1e-12) -> None:
        self.contraction = contraction
        self.domains = domains
        self._unit = 1 << contraction.cost_bits
        self._least = [
            min(domain, key=lambda f, i=i: (contraction.error[i][f], contraction.cost[i][f]))  # type: ignore[misc]
            for i, domain in enumerate(domains)
        ]
        self._limit = 1.0 - margin
        self._error = self._relative_errors()
        self._hubs_of: list[list[int]] = [[] for _ in domains]
        for h, hub in enumerate(contraction.hubs):
            for i in (hub.owner, *hub.consumers):
                self._hubs_of[i].append(h)

    def _relative_errors(self) -> list[list[float]]:
        """Errors above each group's least, as shares of the slack that the budget leaves; 0 without a budget."""
        contraction = self.contraction
        shares = [[0.0] * contraction.n_formats for _ in self.domains]
        slack = 0 if contraction.budget is None else contraction.budget - contraction.error_of(self._least)
        for i, domain in enumerate(self.domains):
            error = contraction.error[i]
            for f in domain if slack else ():
                shares[i][f] = float(Fraction(error[f] - error[self._least[i]], slack))
        return shares

    def most_accurate(self) -> list[int]:
        """The least error in every group; within budget whenever any assignment is."""
        return list(self._least)

    def error(self, choice: Sequence[int]) -> float:
        """Error above the least, as a share of the slack: at most 1 within budget."""
        return sum(self._error[i][f] for i, f in enumerate(choice))

    def _hub_cost(self, h: int, choice: Sequence[int]) -> int:
        hub = self.contraction.hubs[h]
        row = self.contraction.table[choice[hub.owner]]
        return hub.size * sum(row[f] for f in {choice[c] for c in hub.consumers})

    def cost_change(self, choice: list[int], move: Move) -> int:
        """What a move adds to the cost, casts included, in units of 2**-cost_bits."""
        i, f = move
        before = choice[i]
        change = self.contraction.cost[i][f] - self.contraction.cost[i][before]
        for h in self._hubs_of[i]:
            change -= self._hub_cost(h, choice)
            choice[i] = f
            change += self._hub_cost(h, choice)
            choice[i] = before
        return change

    def repair(self, choice: Sequence[int]) -> list[int]:
        """Move groups to less error, least cost per error first, until the error is within budget."""
        repaired = list(choice)
        excess = self.error(repaired) - self._limit
        heap = [entry for i in range(len(repaired)) for entry in self._repairs(repaired, i)]
        heapq.heapify(heap)
        while excess > 0 and heap:
            price, i, f = heapq.heappop(heap)
            gain = self._error[i][repaired[i]] - self._error[i][f]
            if gain <= 0:
                continue
            now = self.cost_change(repaired, (i, f)) / self._unit / gain
            if now > price:  # a neighbour has moved since: back into the queue at today's price
                heapq.heappush(heap, (now, i, f))
                continue
            repaired[i] = f
            excess -= gain
            for entry in self._repairs(repaired, i):
                heapq.heappush(heap, entry)
        return repaired if self.error(repaired) <= self._limit else self.most_accurate()

    def _repairs(self, choice: list[int], i: int) -> list[tuple[float, int, int]]:
        here = self._error[i]
        return [
            (self.cost_change(choice, (i, f)) / self._unit / (here[choice[i]] - here[f]), i, f)
            for f in self.domains[i]
            if here[f] < here[choice[i]]
        ]

    def descend(self, choice: Sequence[int]) -> list[int]:
        """Single moves that lower the cost, or the error at equal cost, within budget, until none is left."""
        best = list(choice)
        spent = self.error(best)
        pending = dict.fromkeys(range(len(best)))
        while pending:
            i, _ = pending.popitem()
            for f in self.domains[i]:
                more = self._error[i][f] - self._error[i][best[i]]
                if f == best[i] or (more > 0 and spent + more > self._limit):
                    continue
                change = self.cost_change(best, (i, f))
                if change < 0 or (change == 0 and more < 0):
                    best[i] = f
                    spent += more
                    pending.update(dict.fromkeys(self._around(i)))
        return best

    def _around(self, i: int) -> list[int]:
        """A group and those that share a hub with it."""
        hubs = [self.contraction.hubs[h] for h in self._hubs_of[i]]
        return [i, *(j for hub in hubs for j in (hub.owner, *hub.consumers))]
