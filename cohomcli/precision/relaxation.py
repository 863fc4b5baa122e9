"""The assignment problem as a linear relaxation and as a mixed-integer program for HiGHS, in floating point.

x[i, f] = 1 when group i takes format f, and y[h, g, f] = 1 when the producer of hub h, stored in g, is copied to f:
a reader that takes f finds it stored or copied, and one that leaves g needs a copy from g. Where a producer is copied
twice, or where casts break the quadrangle inequality, this may charge a cheaper source than the stored one: it is a
relaxation, and rows y[h, g, f] <= x[owner, g] against that cost more time than they gain in bound. Nothing that comes
from here is believed: the multipliers go into an exact bound, the assignments are evaluated in exact integers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from cohomcli.precision.certificate import Multipliers
from cohomcli.precision.contraction import Contraction, Domains

Array = NDArray[np.float64]
ERROR_SCALE = 1e3  # HiGHS reads coefficients below 1e-9 as 0 and meets rows to 1e-7: both are relative to this
NEGLIGIBLE = 1e-12  # errors below this share of the slack leave the row, and are charged to it all together
COST_SCALE = 1e4
WALL = 10.0  # seconds on HiGHS's clock, the wall's, for each CPU second: on a busy machine they pass faster
PRICE_STEPS = 60
POTENTIAL_BITS = 32  # potentials are rounded to 2**-32 of the largest


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS prints some lines of its search to the process' standard output whatever its options say: not there."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


@dataclass
class _Rows:
    """Triplets of the inequality rows A x <= b."""

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)

    def add(self, entries: list[tuple[int, float]], bound: float) -> int:
        """Append a row; its number."""
        row = len(self.bounds)
        self.rows += [row] * len(entries)
        self.columns += [column for column, _ in entries]
        self.values += [value for _, value in entries]
        self.bounds.append(bound)
        return row


def price_only(contraction: Contraction, domains: Domains) -> Multipliers:
    """Multipliers without potentials and with the best price for them, by bisection: a bound that needs no solver."""
    none: tuple[tuple[tuple[int, ...], ...], ...] = tuple(() for _ in contraction.hubs)
    cost, share, slack = _unary(contraction, domains)
    if not slack:
        return Multipliers(Fraction(0), none)

    def overspent(price: float) -> bool:
        chosen = np.argmin(cost + price * share, axis=1)
        return float(np.take_along_axis(share, chosen[:, None], axis=1).sum()) > 1.0

    high = float(np.ptp(np.where(np.isfinite(cost), cost, 0.0), axis=1).max()) or 1.0
    low = 0.0
    for _ in range(PRICE_STEPS):
        if overspent(high):
            low, high = high, 2.0 * high
    for _ in range(PRICE_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if overspent(middle) else (low, middle)
    return Multipliers(_coarse(Fraction(high) / slack), none)


def _unary(contraction: Contraction, domains: Domains) -> tuple[Array, Array, Fraction]:
    """Costs of the groups (n, F), inf outside the domains; their errors, 0 there, as shares of the slack; the slack.

    Errors are taken above the least of their group; the slack is what the least errors leave of the budget, given as 0
    when there is no budget, because then nothing depends on errors.
    """
    cost = np.full((len(domains), contraction.n_formats), np.inf)
    share = np.zeros_like(cost)
    least = [min(contraction.error[i][f] for f in domain) for i, domain in enumerate(domains)]
    slack = 0 if contraction.budget is None else contraction.budget - sum(least)
    for i, domain in enumerate(domains):
        for f in domain:
            cost[i, f] = float(Fraction(contraction.cost[i][f], 1 << contraction.cost_bits))
            share[i, f] = float(Fraction(contraction.error[i][f] - least[i], slack)) if slack else 0.0
    return cost, share, Fraction(slack, 1 << contraction.error_bits)


def _coarse(price: Fraction) -> Fraction:
    """A price >= 0 rounded down to a dyadic rational of about 53 bits, so that bounds stay short."""
    numerator, denominator = price.as_integer_ratio()
    shift = 53 - numerator.bit_length() + denominator.bit_length()
    if shift < 0:
        return Fraction((numerator // (denominator << -shift)) << -shift)
    return Fraction((numerator << shift) // denominator, 1 << shift)


@dataclass(frozen=True)
class RelaxedPoint:
    """A solution of the linear relaxation: `share[i, f]` in [0, 1] (n, F), and the multipliers of its rows."""

    share: Array
    multipliers: Multipliers


class Relaxation:
    """The program over `domains`, built once; formats are fixed later by bounds on x."""

    def __init__(self, contraction: Contraction, domains: Domains) -> None:
        self._contraction = contraction
        self._domains = domains
        self._rows = _Rows()
        self._x: dict[tuple[int, int], int] = {}
        for i, domain in enumerate(domains):
            for f in domain:
                self._x[i, f] = len(self._x)
        cost, share, self._slack = _unary(contraction, domains)
        self._cost = [float(cost[i, f]) for i, f in self._x]
        # (hub, reader, format) -> rows whose multipliers add up to the potential, with their signs
        self._potential_rows: list[tuple[int, int, int, int, float]] = []
        self._price_row: int | None = None
        for h in range(len(contraction.hubs)):
            self._add_hub(h)
        if self._slack:
            self._add_budget(share)
        self._upper, self._bounds, self._one = self._matrices()
        span = max(map(abs, self._cost), default=0.0)
        self._cost_scale = COST_SCALE / span if span > 0 else 1.0

    def _add_hub(self, h: int) -> None:
        hub, domains, table = self._contraction.hubs[h], self._domains, self._contraction.table
        owned = domains[hub.owner]
        asked = sorted({f for c in hub.consumers for f in domains[c]})
        unit = 1 << self._contraction.cost_bits
        copy = {}
        for g in owned:
            for f in asked:
                if f != g:
                    copy[g, f] = len(self._cost)
                    self._cost.append(hub.size * table[g][f] / unit)
        for k, c in enumerate(hub.consumers):
            self._add_reader((h, k), hub.owner, c, copy)

    def _add_reader(self, place: tuple[int, int], owner: int, c: int, copy: dict[tuple[int, int], int]) -> None:
        """Rows of one reader: x[c, f] <= x[owner, f] + copies to f, and x[owner, g] <= x[c, g] + copies from g."""
        here, there = self._domains[owner], self._domains[c]
        for f in there:
            entries = [(self._x[c, f], 1.0)] + [(copy[g, f], -1.0) for g in here if g != f]
            if f in here:
                entries.append((self._x[owner, f], -1.0))
            self._potential_rows.append((*place, f, self._rows.add(entries, 0.0), 1.0))
        if here == there and len(here) == 2:
            return  # with the same two formats the rows below are the rows above
        for g in here:
            entries = [(self._x[owner, g], 1.0)] + [(copy[g, f], -1.0) for f in there if f != g]
            if g in there:
                entries.append((self._x[c, g], -1.0))
            self._potential_rows.append((*place, g, self._rows.add(entries, 0.0), -1.0))

    def _add_budget(self, share: Array) -> None:
        kept = share > NEGLIGIBLE
        dropped = np.where(kept, 0.0, share).max(axis=1).sum()
        entries = [(column, share[i, f] * ERROR_SCALE) for (i, f), column in self._x.items() if kept[i, f]]
        self._price_row = self._rows.add(entries, ERROR_SCALE * (1.0 - float(dropped)))

    def _matrices(self) -> tuple[sp.csr_array, Array, sp.csr_array]:
        """Inequality matrix and right-hand side, and the matrix of sum_f x[i, f] = 1."""
        n_columns = len(self._cost)
        rows = self._rows
        upper = sp.csr_array((rows.values, (rows.rows, rows.columns)), shape=(len(rows.bounds), n_columns))
        owners = [i for i, _ in self._x]
        one = sp.csr_array((np.ones(len(owners)), (owners, range(len(owners)))), shape=(len(self._domains), n_columns))
        return upper, np.asarray(rows.bounds), one

    def _box(self, domains: Domains) -> Array:
        high = np.ones(len(self._cost))
        high[: len(self._x)] = [f in domains[i] for i, f in self._x]
        return high

    def relax(self, domains: Domains, seconds: float) -> RelaxedPoint | None:
        """Solve the linear relaxation over sub-domains; None when HiGHS does not finish within CPU `seconds`."""
        bounds, high = self._bounds, self._box(domains)
        found = linprog(
            np.asarray(self._cost) * self._cost_scale,
            A_ub=self._upper if len(bounds) else None,
            b_ub=bounds if len(bounds) else None,
            A_eq=self._one,
            b_eq=np.ones(len(self._domains)),
            bounds=np.column_stack([np.zeros_like(high), high]),
            method="highs",
            options={"time_limit": WALL * max(seconds, 0.1)},
        )
        if found.status != 0:
            return None
        marginals = np.asarray(found.ineqlin.marginals) / -self._cost_scale if len(bounds) else np.zeros(0)
        return RelaxedPoint(self._shares(found.x), self._multipliers(np.maximum(marginals, 0.0)))

    def integer(self, seconds: float, rel_gap: float, nodes: int) -> list[int] | None:
        """The best assignment HiGHS finds in `nodes` nodes and `seconds`, unchecked; None if it finds none."""
        rows = [LinearConstraint(self._one, 1.0, 1.0)]
        if len(self._bounds):
            rows.append(LinearConstraint(self._upper, -np.inf, self._bounds))
        with _silent_stdout():
            found = milp(
                np.asarray(self._cost) * self._cost_scale,
                integrality=np.arange(len(self._cost)) < len(self._x),
                bounds=Bounds(0.0, self._box(self._domains)),
                constraints=rows,
                options={"time_limit": WALL * max(seconds, 0.1), "mip_rel_gap": rel_gap, "node_limit": nodes},
            )
        return None if found.x is None else [int(f) for f in self._shares(found.x).argmax(axis=1)]

    def _shares(self, values: Array) -> Array:
        share = np.zeros((len(self._domains), self._contraction.n_formats))
        for (i, f), column in self._x.items():
            share[i, f] = values[column]
        return share

    def _multipliers(self, marginals: Array) -> Multipliers:
        """Prices and potentials of the rows' marginals (>= 0), potentials rounded to a common power of two."""
        values = [[[0.0] * self._contraction.n_formats for _ in hub.consumers] for hub in self._contraction.hubs]
        for h, k, f, row, sign in self._potential_rows:
            values[h][k][f] += sign * float(marginals[row])
        largest = max((abs(x) for hub in values for reader in hub for x in reader), default=0.0)
        bits = max(0, POTENTIAL_BITS - int(np.frexp(largest)[1])) if largest > 0 else 0
        potentials = tuple(
            tuple(tuple(round(x * 2.0**bits) for x in reader) for reader in hub)
            if any(x for reader in hub for x in reader)
            else ()
            for hub in values
        )
        price = Fraction(0)
        if self._price_row is not None:
            price = _coarse(Fraction(float(marginals[self._price_row]) * ERROR_SCALE) / self._slack)
        return Multipliers(price, potentials, bits)
