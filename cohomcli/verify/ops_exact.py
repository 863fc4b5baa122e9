"""Integers, booleans and constants: masks, positions and comparisons, computed exactly or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cohomcli.verify.arrays import Array, Unsupported, alike_pair, apply, balls, compare, exact, is_object, is_real
from cohomcli.verify.ops_shape import FLOATS, cast
from cohomcli.verify.table import operation


def _filled(shape: Sequence[int], value: Any, dtype: str | None) -> Array:
    if dtype == "bool":
        return np.full(tuple(shape), bool(value))
    if dtype in FLOATS or (dtype is None and isinstance(value, float)):
        return np.full(tuple(shape), float(value))
    return np.full(tuple(shape), int(value), dtype=np.int64)


def _kind_of(x: Array) -> str:
    return {"f": "float32", "O": "float32", "b": "bool"}.get(x.dtype.kind, "int64")


@operation("zeros", "empty")
def zeros(size: Sequence[int], *, dtype: str | None = None, **_: Any) -> Array:
    """All zero (an `empty` tensor's entries are never read by a sound graph)."""
    return _filled(size, 0, dtype or "float32")


@operation("ones")
def ones(size: Sequence[int], *, dtype: str | None = None, **_: Any) -> Array:
    """All one."""
    return _filled(size, 1, dtype or "float32")


@operation("full")
def full(size: Sequence[int], fill_value: Any, *, dtype: str | None = None, **_: Any) -> Array:
    """One value everywhere."""
    return _filled(size, fill_value, dtype or ("bool" if isinstance(fill_value, bool) else None))


@operation("zeros_like", "empty_like")
def zeros_like(self: Array, *, dtype: str | None = None, **_: Any) -> Array:
    """All zero, in the shape of `self`."""
    return _filled(self.shape, 0, dtype or _kind_of(self))


@operation("ones_like")
def ones_like(self: Array, *, dtype: str | None = None, **_: Any) -> Array:
    """All one, in the shape of `self`."""
    return _filled(self.shape, 1, dtype or _kind_of(self))


@operation("full_like")
def full_like(self: Array, fill_value: Any, *, dtype: str | None = None, **_: Any) -> Array:
    """One value, in the shape of `self`."""
    return _filled(self.shape, fill_value, dtype or _kind_of(self))


@operation("new_zeros")
def new_zeros(self: Array, size: Sequence[int], *, dtype: str | None = None, **_: Any) -> Array:
    """All zero, in the kind of `self`."""
    return _filled(size, 0, dtype or _kind_of(self))


@operation("new_ones")
def new_ones(self: Array, size: Sequence[int], *, dtype: str | None = None, **_: Any) -> Array:
    """All one, in the kind of `self`."""
    return _filled(size, 1, dtype or _kind_of(self))


@operation("new_full")
def new_full(self: Array, size: Sequence[int], fill_value: Any, *, dtype: str | None = None, **_: Any) -> Array:
    """One value, in the kind of `self`."""
    return _filled(size, fill_value, dtype or _kind_of(self))


@operation("scalar_tensor")
def scalar_tensor(s: Any, *, dtype: str | None = None, **_: Any) -> Array:
    """A number as a tensor."""
    return _filled((), s, dtype or "float32")


@operation("arange.default")
def arange(end: int, **options: Any) -> Array:
    """0, 1, ... below end."""
    return arange_step(0, end, 1, **options)


@operation("arange.start")
def arange_start(start: int, end: int, **options: Any) -> Array:
    """start, start + 1, ... below end."""
    return arange_step(start, end, 1, **options)


@operation("arange.start_step")
def arange_step(start: int, end: int, step: int = 1, *, dtype: str | None = None, **_: Any) -> Array:
    """start, start + step, ... before end, for whole numbers."""
    if any(float(n) != int(n) for n in (start, end, step)):
        raise Unsupported("arange of numbers that are not whole")
    real = any(isinstance(n, float) for n in (start, end, step))
    return cast(np.arange(int(start), int(end), int(step), dtype=np.int64), dtype or ("float32" if real else None))


@operation("cumsum")
def cumsum(self: Array, dim: int, *, dtype: str | None = None, **_: Any) -> Array:
    """Running sums: exact for integers, balls otherwise."""
    x = cast(self, dtype)
    if x.dtype.kind in "bi":
        return np.cumsum(x.astype(np.int64), axis=dim)
    return np.asarray(np.add.accumulate(balls(x), axis=dim), dtype=object)


def _relation(name: str) -> None:
    def related(self: Array, other: Any) -> Array:
        return compare(name, self, other)

    related.__doc__ = f"Whether entries are {name}; refused for balls that overlap."
    operation(name)(related)


for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    _relation(_name)


@operation("__and__", "bitwise_and", "logical_and")
def and_(self: Array, other: Any) -> Array:
    """Conjunction, bit by bit for integers."""
    return np.asarray(exact(np.asarray(self)) & exact(np.asarray(other)))


@operation("__or__", "bitwise_or", "logical_or")
def or_(self: Array, other: Any) -> Array:
    """Disjunction, bit by bit for integers."""
    return np.asarray(exact(np.asarray(self)) | exact(np.asarray(other)))


@operation("__xor__", "bitwise_xor", "logical_xor")
def xor(self: Array, other: Any) -> Array:
    """Exclusive disjunction, bit by bit for integers."""
    return np.asarray(exact(np.asarray(self)) ^ exact(np.asarray(other)))


@operation("bitwise_not", "logical_not")
def not_(self: Array) -> Array:
    """Negation, bit by bit for integers."""
    return np.asarray(~exact(self))


@operation("any")
def any_(self: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    """Whether any entry is not zero."""
    return np.asarray((exact(self) != 0).any(axis=dim, keepdims=keepdim))


@operation("all")
def all_(self: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    """Whether no entry is zero."""
    return np.asarray((exact(self) != 0).all(axis=dim, keepdims=keepdim))


@operation("isnan", "isinf")
def not_a_number(self: Array) -> Array:
    """False for enclosures, which are finite or refused; exact doubles are looked at."""
    if is_object(self):
        if not all(x.is_finite() for x in self.ravel()):
            raise Unsupported("a question about infinities of computed numbers")
        return np.zeros(self.shape, dtype=bool)
    return np.isinf(self) | np.isnan(self)


@operation("where")
def where(condition: Array, self: Any, other: Any) -> Array:
    """self where the condition holds, other elsewhere; the condition is exact."""
    a, b = alike_pair(self, other)
    return np.where(exact(condition), a, b)


@operation("masked_fill")
def masked_fill(self: Array, mask: Array, value: Any) -> Array:
    """`value` where the mask holds."""
    return where(mask, value, self)


@operation("tril")
def tril(self: Array, diagonal: int = 0) -> Array:
    """Zero above a diagonal."""
    return where(np.tril(np.ones(self.shape, dtype=bool), diagonal), self, 0.0 if is_real(self) else 0)


@operation("triu")
def triu(self: Array, diagonal: int = 0) -> Array:
    """Zero below a diagonal."""
    return where(np.triu(np.ones(self.shape, dtype=bool), diagonal), self, 0.0 if is_real(self) else 0)


@operation("argmax")
def argmax(self: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    """Where the largest entry is; refused unless it is proved to be the largest."""
    if not is_object(self):
        return np.asarray(np.argmax(self, axis=dim, keepdims=keepdim))
    guess = np.argmax(apply(float, self).astype(np.float64), axis=dim, keepdims=True)
    if dim is None:
        flat, best = self.ravel(), int(guess.ravel()[0])
        if len(flat) > 1 and not bool(compare("gt", flat[best : best + 1], np.delete(flat, best)).all()):
            raise Unsupported("a largest entry that is not the one found")
        return np.asarray(best)
    chosen = np.take_along_axis(self, guess, axis=dim)
    others = np.indices(self.shape)[dim] != guess
    left = np.broadcast_to(chosen, self.shape)[others]
    if left.size and not bool(compare("gt", left, self[others]).all()):
        raise Unsupported("a largest entry that is not the one found")
    return guess if keepdim else np.squeeze(guess, axis=dim)
