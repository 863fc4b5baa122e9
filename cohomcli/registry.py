"""A registry of named things that are imported only when they are asked for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, TypeVar

from cohomcli.errors import UsageError

_Value = TypeVar("_Value")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `name`: the nearest known names, or all of them when none is near."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(options)}"


class Registry:
    """Maps a name to an object, given directly or as `"package.module:attribute"` and imported on first use.

    >>> Registry("metric", {"sqrt": "math:sqrt"}).get("sqrt")(9.0)
    3.0
    """

    def __init__(self, kind: str, entries: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = dict(entries or {})

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def add(self, name: str, value: Any) -> None:
        """Register `value` under `name`; a second registration of a name is a mistake in our code."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = value

    def register(self, name: str) -> Callable[[_Value], _Value]:
        """A decorator that adds what it stands on under `name`."""

        def added(value: _Value) -> _Value:
            self.add(name, value)
            return value

        return added

    def get(self, name: str) -> Any:
        """The object called `name`.

        Raises:
            UsageError: no such name; the hint lists the nearest ones.
        """
        if name not in self._entries:
            raise UsageError(f"unknown {self.kind} {name!r}", did_you_mean(name, self))
        value = self._entries[name]
        if isinstance(value, str) and ":" in value:
            module, _, attribute = value.partition(":")
            value = self._entries[name] = getattr(import_module(module), attribute)
        return value
