"""Formats that a search may leave out: those no budget affords, and those that another format serves at least as well.

Each step is proved by an exact test that the checker of certificates repeats.
"""

from __future__ import annotations

from collections.abc import Iterator

from cohomcli.precision.contraction import Contraction, Domains

Step = tuple[int, int]  # (the format to drop, the format to keep)


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


def dominates(contraction: Contraction, domains: Domains, step: tuple[int, int], groups: frozenset[int]) -> bool:
    """Whether format `keep` of `step` = (drop, keep) may replace `drop` on all of `groups` at once, at no loss.

    It may if it costs and errs no more in each of them, casts to and from any third format cost no more, and no other
    member of a hub that touches them can take `drop`. Then renaming drop to keep in any assignment is a map of
    formats on every hub it touches, under which no two equal formats become different and no cast becomes dearer.
    """
    drop, keep = step
    for i in groups:
        if drop not in domains[i] or keep not in domains[i]:
            return False
        cost, error = contraction.cost[i], contraction.error[i]
        if cost[keep] > cost[drop] or error[keep] > error[drop]:
            return False
    touching = [hub for hub in contraction.hubs if hub.owner in groups or not groups.isdisjoint(hub.consumers)]
    members = {i for hub in touching for i in (hub.owner, *hub.consumers)}
    if any(drop in domains[i] for i in members - groups):
        return False
    third = set(range(contraction.n_formats)) - {drop, keep}
    table = contraction.table
    cheaper = all(table[keep][f] <= table[drop][f] and table[f][keep] <= table[f][drop] for f in third)
    return cheaper or not touching


def drop(domains: Domains, groups: frozenset[int], fmt: int) -> Domains:
    """The domains without format `fmt` on `groups`."""
    return tuple(tuple(f for f in domain if f != fmt) if i in groups else domain for i, domain in enumerate(domains))


def dominated(contraction: Contraction, domains: Domains) -> tuple[Domains, list[tuple[Step, frozenset[int]]]]:
    """Drop formats while `dominates` allows it; the smaller domains and the steps that led there, in order."""
    steps = []
    formats = range(contraction.n_formats)
    for step in [(f, g) for f in formats for g in formats if f != g]:
        for groups in _components(contraction, domains, step[0]):
            if dominates(contraction, domains, step, groups):
                domains = drop(domains, groups, step[0])
                steps.append((step, groups))
    return domains, steps


def _components(contraction: Contraction, domains: Domains, fmt: int) -> Iterator[frozenset[int]]:
    """Connected components, through hubs, of the groups that can take `fmt`."""
    neighbours: dict[int, set[int]] = {i: set() for i, domain in enumerate(domains) if fmt in domain}
    for hub in contraction.hubs:
        members = [i for i in (hub.owner, *hub.consumers) if i in neighbours]
        for i in members[1:]:  # a star is enough to connect them
            neighbours[members[0]].add(i)
            neighbours[i].add(members[0])
    while neighbours:
        found, pending = set(), [next(iter(neighbours))]
        while pending:
            i = pending.pop()
            if i not in found:
                found.add(i)
                pending += neighbours.pop(i)
        yield frozenset(found)
