"""Changes of one place in a JSON document, by a seeded generator."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any


def leaves(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all leaves, and of empty containers."""
    if isinstance(tree, dict) and tree:
        for key, item in tree.items():
            yield from leaves(item, (*place, key))
    elif isinstance(tree, list) and tree:
        for key, item in enumerate(tree):
            yield from leaves(item, (*place, key))
    else:
        yield place


def _hexadecimal(text: str) -> float | None:
    """The number that a certificate writes so; None for any other text, and beyond the doubles."""
    try:
        return float.fromhex(text) if text.startswith(("0x", "-0x")) else None
    except (ValueError, OverflowError):
        return None


def altered(value: Any, rng: random.Random) -> Any:
    """Another value of about the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice([-1, 1, 2, 1 << 20])
    if isinstance(value, float):
        return rng.choice([value * (1 + 1e-9), value * 2, -value or 1.0, value + 1e-3])
    if isinstance(value, str) and (real := _hexadecimal(value)) is not None:
        return (real * (1 + 2.0**-20) + 2.0**-30).hex()
    if isinstance(value, str) and value:
        i = rng.randrange(len(value))
        return value[:i] + chr((ord(value[i]) + 1) % 128) + value[i + 1 :]
    return rng.choice(["x", 7, [1], {"a": 1}])


def with_change(document: Any, place: tuple[Any, ...], rng: random.Random) -> Any:
    """`document` with another value at `place`, or without it; what is no container is altered itself."""
    if not place:
        return altered(document, rng)
    changed = copy.deepcopy(document)
    node: Any = changed
    for key in place[:-1]:
        node = node[key]
    action = rng.random()
    if action < 0.8:
        node[place[-1]] = altered(node[place[-1]], rng)
    elif action < 0.9:
        del node[place[-1]]
    else:
        node[place[-1]] = rng.choice([None, "", -1, [], {}, "nan", 1e308])
    return changed
