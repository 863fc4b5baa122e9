"""Operations that only move entries: the values, exact or balls, stay what they are."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from cohomcli.verify.arrays import Array, Unsupported, apply, balls, exact
from cohomcli.verify.functions import trunc
from cohomcli.verify.table import operation

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8")


def cast(x: Array, dtype: str | None) -> Array:
    """`x` read as another dtype. Between real dtypes nothing happens: the function enclosed is that of real numbers.

    Raises:
        Unsupported: an integer too large for a double, or a real number for an integer.
        Undecided: computed reals turned into integers, where the integer is not certain.
    """
    if dtype is None:
        return x
    if dtype in FLOATS:
        if x.dtype.kind in "fO":
            return x
        if x.size and int(np.abs(x.astype(object)).max()) > 1 << 53:
            raise Unsupported("an integer beyond 2^53 made real")
        return x.astype(np.float64)
    if dtype == "bool":
        return exact(x) != 0
    if dtype in INTEGERS:
        source = apply(lambda b: float(trunc(b)), x).astype(np.float64) if x.dtype == object else x
        if source.dtype.kind == "f" and not bool((np.abs(source) < 2.0**62).all()):
            raise Unsupported("a real number beyond int64 made an integer")
        return np.trunc(source).astype(np.int64) if source.dtype.kind == "f" else source.astype(np.int64)
    raise Unsupported(f"values of dtype {dtype!r}")


@operation("to.dtype")
def to_dtype(self: Array, dtype: str, *_: Any, **__: Any) -> Array:
    """The same numbers."""
    return cast(self, dtype)


@operation("to.dtype_layout", "_to_copy")
def to_layout(self: Array, *, dtype: str | None = None, **_: Any) -> Array:
    """The same numbers."""
    return cast(self, dtype)


@operation("to.device")
def to_device(self: Array, device: Any, dtype: str, *_: Any, **__: Any) -> Array:
    """The same numbers."""
    return cast(self, dtype)


@operation("type_as", "to.other")
def type_as(self: Array, other: Array, *_: Any, **__: Any) -> Array:
    """The numbers of `self` in the kind of `other`."""
    kinds = {"f": "float32", "O": "float32", "b": "bool", "i": "int64"}
    return cast(self, kinds[other.dtype.kind])


@operation("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "positive", "conj", "resolve_conj", "detach_")
def same(self: Array, *_: Any, **__: Any) -> Array:
    """x -> x."""
    return self


@operation("dropout", "feature_dropout", "alpha_dropout")
def dropout(input: Array, p: float, train: bool) -> Array:
    """x -> x: in evaluation, dropout does nothing."""
    if train:
        raise Unsupported("dropout in training")
    return input


@operation("view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias")
def view(self: Array, size: Sequence[int], *_: Any) -> Array:
    """The entries in row-major order under another shape."""
    return self.reshape(tuple(size))


@operation("flatten")
def flatten(self: Array, start_dim: int = 0, end_dim: int = -1) -> Array:
    """Dimensions start_dim to end_dim become one."""
    if self.ndim == 0:
        return self.reshape(1)
    start, end = start_dim % self.ndim, end_dim % self.ndim
    return self.reshape((*self.shape[:start], -1, *self.shape[end + 1 :]))


@operation("unflatten")
def unflatten(self: Array, dim: int, sizes: Sequence[int]) -> Array:
    """One dimension becomes several."""
    d = dim % self.ndim
    return self.reshape((*self.shape[:d], *sizes, *self.shape[d + 1 :]))


@operation("permute")
def permute(self: Array, dims: Sequence[int]) -> Array:
    """Dimensions reordered."""
    return self.transpose([d % self.ndim for d in dims])


@operation("transpose", "swapaxes")
def transpose(self: Array, dim0: int, dim1: int) -> Array:
    """Two dimensions exchanged."""
    return np.swapaxes(self, dim0, dim1) if self.ndim else self


@operation("t", "numpy_T")
def t(self: Array) -> Array:
    """The transpose of a matrix."""
    return self.T


@operation("unsqueeze")
def unsqueeze(self: Array, dim: int) -> Array:
    """A dimension of length one more."""
    return np.expand_dims(self, dim)


@operation("squeeze")
def squeeze(self: Array, dim: int | Sequence[int] | None = None) -> Array:
    """Dimensions of length one dropped: all, or those of `dim` that have length one."""
    if dim is None:
        return self.squeeze()
    wanted = [dim] if isinstance(dim, int) else list(dim)
    return self.squeeze(tuple(d % self.ndim for d in wanted if self.ndim and self.shape[d] == 1))


@operation("expand", "broadcast_to")
def expand(self: Array, size: Sequence[int], **_: Any) -> Array:
    """Dimensions of length one repeated; -1 keeps a length."""
    lead = len(size) - self.ndim
    shape = [self.shape[i - lead] if n == -1 else n for i, n in enumerate(size)]
    return np.broadcast_to(self, shape)


@operation("expand_as")
def expand_as(self: Array, other: Array) -> Array:
    """Repeated to the shape of `other`."""
    return np.broadcast_to(self, other.shape)


@operation("repeat")
def repeat(self: Array, repeats: Sequence[int]) -> Array:
    """Tiled."""
    return np.tile(self, tuple(repeats))


@operation("repeat_interleave.self_int")
def repeat_interleave(self: Array, repeats: int, dim: int | None = None, **_: Any) -> Array:
    """Every entry along `dim` repeated in place."""
    return np.repeat(self, repeats, axis=dim)


@operation("slice")
def slice_(self: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    """Entries start, start + step, ... before end along one dimension."""
    index: list[Any] = [slice(None)] * self.ndim
    index[dim] = slice(start, end, step)
    return self[tuple(index)]


@operation("select")
def select(self: Array, dim: int, index: int) -> Array:
    """One entry along a dimension, which goes."""
    return np.asarray(np.take(self, index, axis=dim))


@operation("narrow")
def narrow(self: Array, dim: int, start: int, length: int) -> Array:
    """`length` entries from `start` on."""
    return slice_(self, dim, start, start + length)


@operation("split", "split_with_sizes", "unsafe_split")
def split(self: Array, split_size: int | Sequence[int], dim: int = 0) -> list[Array]:
    """Pieces of one length, or of the given lengths, along a dimension."""
    total = self.shape[dim]
    sizes = [split_size] * -(-total // split_size) if isinstance(split_size, int) else list(split_size)
    ends = np.minimum(np.cumsum(sizes), total).tolist()
    return [slice_(self, dim, start, end) for start, end in zip([0, *ends], ends, strict=False)]


@operation("chunk")
def chunk(self: Array, chunks: int, dim: int = 0) -> list[Array]:
    """At most `chunks` pieces of equal length, the last may be shorter."""
    pieces: list[Array] = split(self, max(1, -(-self.shape[dim] // chunks)), dim)
    return pieces


@operation("unbind")
def unbind(self: Array, dim: int = 0) -> list[Array]:
    """All entries along a dimension."""
    return [select(self, dim, i) for i in range(self.shape[dim])]


@operation("cat")
def cat(tensors: Sequence[Array], dim: int = 0) -> Array:
    """Tensors one after another; legacy empty ones are skipped."""
    kept = alike([x for x in tensors if x.shape != (0,)] or list(tensors))
    return np.concatenate(kept, axis=dim)


@operation("stack")
def stack(tensors: Sequence[Array], dim: int = 0) -> Array:
    """Tensors along a new dimension."""
    return np.stack(alike(list(tensors)), axis=dim)


def alike(arrays: list[Array]) -> list[Array]:
    """All as balls when one of them is."""
    return [balls(x) for x in arrays] if any(x.dtype == object for x in arrays) else arrays


@operation("index")
def index(self: Array, indices: Sequence[Array | None]) -> Array:
    """x[i, j, ...] with broadcast integer (or bool) index tensors; None stands for a whole dimension."""
    given = [d for d, key in enumerate(indices) if key is not None]
    if given and given != list(range(given[0], given[-1] + 1)):
        raise Unsupported("an index with gaps between its index tensors")
    keys = tuple(slice(None) if i is None else exact(i) for i in indices)
    return np.asarray(self[keys])


@operation("gather")
def gather(self: Array, dim: int, index: Array, **_: Any) -> Array:
    """out[i, j, k] = x[i, index[i, j, k], k] for dim = 1."""
    where = np.indices(index.shape)
    keys = [exact(index) if d == dim % self.ndim else where[d] for d in range(self.ndim)]
    return np.asarray(self[tuple(keys)])


@operation("index_select")
def index_select(self: Array, dim: int, index: Array) -> Array:
    """Slices by index along a dimension."""
    return np.take(self, exact(index), axis=dim)


@operation("embedding")
def embedding(weight: Array, indices: Array, *_: Any, **__: Any) -> Array:
    """Rows of a table: exact, because the table is."""
    return np.asarray(weight[exact(indices)])


@operation("flip")
def flip(self: Array, dims: Sequence[int]) -> Array:
    """Reversed along dimensions."""
    return np.flip(self, tuple(dims))


@operation("roll")
def roll(self: Array, shifts: Sequence[int], dims: Sequence[int] = ()) -> Array:
    """Shifted cyclically."""
    return np.roll(self, tuple(shifts), tuple(dims)) if dims else np.roll(self, tuple(shifts))


@operation("constant_pad_nd", "pad")
def pad(self: Array, pad: Sequence[int], *rest: Any, value: float | None = 0.0, mode: str = "constant") -> Array:
    """Framed by a constant; `pad` lists (before, after) from the last dimension backwards."""
    for item in rest:
        mode, value = (item, value) if isinstance(item, str) else (mode, item)
    if mode != "constant" or any(n < 0 for n in pad):
        raise Unsupported(f"padding of mode {mode!r} or with negative widths")
    pairs = [(pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)][::-1]
    frame = [(0, 0)] * (self.ndim - len(pairs)) + pairs
    fill = float(value or 0.0)
    return np.pad(self, frame, constant_values=balls(fill)[()] if self.dtype == object else fill)


@operation("diagonal")
def diagonal(self: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    """A diagonal as last dimension."""
    return np.diagonal(self, offset, dim1, dim2)


def getitem(sequence: Any, position: int) -> Any:
    """One result out of several: the target `operator.getitem` of exported graphs."""
    return operator.getitem(sequence, position)
