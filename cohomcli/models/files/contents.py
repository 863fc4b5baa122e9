"""Walking the plain data an inert reader returns: leaves, names, and settings, with every walk bounded."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from cohomcli.models.files.limits import Limits
from cohomcli.models.files.numpystubs import ArrayStub
from cohomcli.models.files.objects import Inert, TensorSpec, Unread
from cohomcli.models.files.source import Source

Leaf = TensorSpec | Tensor | Unread
_MAX_NAME = 500
_MAX_DEPTH = 100
_MAX_SETTING_TEXT = 300
_MAX_SETTINGS = 10_000
_MAX_SETTING_DEPTH = 6


def leaf(value: object) -> Leaf | None:
    """The tensor that `value` is, or None; NumPy arrays are described by a stub."""
    if isinstance(value, ArrayStub):
        return value.tensor
    return value if isinstance(value, (TensorSpec, Tensor, Unread)) else None


class Names:
    """Counts the names a walk collects: modules that contain themselves, or each other twice, have endlessly many."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self._source, self._left, self._text = source, limits.max_names, limits.max_text

    def join(self, path: tuple[str, ...], name: object) -> tuple[str, ...]:
        """`path` extended by `name`.

        Raises:
            InputRefused: not a usable name, too many names, or nested too deeply.
        """
        if not isinstance(name, str) or len(name) > _MAX_NAME:
            raise self._source.corrupt("it names a module or tensor by something other than a short text")
        self._left -= 1
        self._text -= len(name) + sum(map(len, path))
        if self._left < 0 or self._text < 0 or len(path) >= _MAX_DEPTH:
            raise self._source.unsafe("its modules contain each other endlessly")
        return (*path, name)


def scalar(value: object) -> bool:
    """Whether `value` is a setting: a finite number, a short text, a truth value or None."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return value.bit_length() <= 64
    return value is None or (isinstance(value, str) and len(value) <= _MAX_SETTING_TEXT)


def settings(value: object) -> dict[str, Any]:
    """The settings among a mapping's or object's fields as JSON data, a few levels deep; everything else is dropped."""
    found = _plain(value, _MAX_SETTING_DEPTH, [_MAX_SETTINGS])
    return found if isinstance(found, dict) else {}


def _plain(value: object, depth: int, left: list[int]) -> Any:
    if isinstance(value, Inert):
        value = {**value.items, **value.fields}
    left[0] -= 1
    if scalar(value):
        return value
    if depth == 0 or left[0] < 0 or not isinstance(value, (dict, list, tuple)) or len(value) > left[0]:
        return None
    if isinstance(value, dict):
        pairs = ((str(key), _plain(item, depth - 1, left)) for key, item in value.items() if _simple_key(key))
        return {key: item for key, item in pairs if item is not None}
    return [item for item in (_plain(item, depth - 1, left) for item in value) if item is not None]


def _simple_key(key: object) -> bool:
    return isinstance(key, (str, int)) and scalar(key)
