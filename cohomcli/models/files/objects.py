"""What an inert reader makes of a pickle: plain data, and descriptions of everything that would have been called."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cohomcli.models.files.limits import Limits

# Bytes per element of every element type that can be rebuilt from raw bytes; names are torch's.
ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "complex128": 16, "complex64": 8, "complex32": 4, "bool": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
}  # fmt: skip


MAX_DIMENSIONS = 64
_MAX_LENGTH = 2**62


class BadPickle(ValueError):
    """A pickle that is damaged or asks for too much; the message completes "its pickle ..."."""


class Budget:
    """Bytes one pickle may have copied: a short program can ask for the same long string a million times.

    `nested` is True for a pickle that was found inside a pickle, where no third one is read.
    """

    def __init__(self, n_bytes: int, limits: Limits, nested: bool = False) -> None:
        self._left, self.limits, self.nested = n_bytes, limits, nested

    def charge(self, n_bytes: int) -> None:
        """Account for a copy of `n_bytes`.

        Raises:
            BadPickle: the budget is used up.
        """
        self._left -= n_bytes
        if self._left < 0:
            raise BadPickle("copies the same data again and again")


@dataclass(frozen=True, slots=True, eq=False)
class Ref:
    """The name of a class or function a pickle wants to use. It is only ever a name."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """`module.name`."""
        return f"{self.module}.{self.name}"


class Inert:
    """An object that was not made: `what` would have been called with `args`, then given `state`.

    `items` are the key-value pairs and `members` the list elements that were added to it (subclasses of dict, list).
    Compared and hashed by identity.
    """

    __slots__ = ("args", "items", "members", "state", "what")

    def __init__(self, what: object, args: object) -> None:
        self.what, self.args = what, args
        self.state: object = None
        self.items: dict[object, object] = {}
        self.members: list[object] = []

    @property
    def path(self) -> str:
        """`module.name` of its class, or "" when that is not a plain name."""
        return self.what.path if isinstance(self.what, Ref) else ""

    @property
    def fields(self) -> dict[Any, Any]:
        """Its attributes by name; a pair (dict, slots) is the form of classes with `__slots__`."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:
            parts = [part for part in state if isinstance(part, dict)]
            return {key: value for part in parts for key, value in part.items()}
        return state if isinstance(state, dict) else {}


@dataclass(frozen=True, slots=True, eq=False)
class OpaqueKey:
    """A mapping key that is neither text nor a number: kept, never compared (comparing nested tuples can explode)."""

    value: object


@dataclass(slots=True, eq=False)
class StorageSpec:
    """`n_bytes` of raw memory a file claims to hold; `fill` copies them out and refuses when they are not there.

    `dtype` is what the storage itself says it holds, None for untyped bytes.
    """

    dtype: str | None
    n_bytes: int
    fill: Callable[[memoryview], None] | None
    big_endian: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TensorSpec:
    """A view on a storage, in elements: `offset`, `shape`, `stride`. Nothing is allocated for it yet."""

    storage: StorageSpec
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def view(self) -> tuple[object, ...]:
        """Equal for two tensors exactly when they are the same memory seen the same way."""
        return id(self.storage), self.dtype, self.offset, self.shape, self.stride


@dataclass(frozen=True, slots=True, eq=False)
class Unread:
    """A tensor that is there but cannot be rebuilt from raw bytes; `why` says what it is."""

    why: str


def contiguous_stride(shape: tuple[int, ...], fortran: bool = False) -> tuple[int, ...]:
    """Strides in elements of a dense array: C order, or Fortran order."""
    strides, step = [], 1
    for length in shape if fortran else reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(strides if fortran else reversed(strides))


def lengths(value: object) -> tuple[int, ...]:
    """A shape, stride or count from a file: at most 64 plain integers, none negative, none beyond any memory.

    Raises:
        BadPickle: it is something else.
    """
    if isinstance(value, (tuple, list)) and len(value) <= MAX_DIMENSIONS:
        found = tuple(value)
        counts = all(type(length) is int and 0 <= length < _MAX_LENGTH for length in found)
        if counts and math.prod(max(length, 1) for length in found) < _MAX_LENGTH:
            return found
    raise BadPickle("gives a tensor an impossible shape")
