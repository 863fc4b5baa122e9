"""NumPy arrays inside pickles, described in the two steps pickle makes them in (`numpy.ndarray.__reduce__`)."""

from __future__ import annotations

import math

from cohomcli.models.files.objects import (
    ITEM_BYTES,
    BadPickle,
    Budget,
    StorageSpec,
    TensorSpec,
    Unread,
    contiguous_stride,
    lengths,
)

# NumPy's type codes (kind and bytes) -> torch's names.
ARRAY_TYPES = {
    "f8": "float64", "f4": "float32", "f2": "float16", "c16": "complex128", "c8": "complex64", "b1": "bool",
    "i8": "int64", "i4": "int32", "i2": "int16", "i1": "int8",
    "u8": "uint64", "u4": "uint32", "u2": "uint16", "u1": "uint8",
}  # fmt: skip


class DtypeStub:
    """A NumPy element type: its code (`f4`) and byte order, which arrives with the state."""

    __slots__ = ("big_endian", "code")

    def __init__(self, code: object) -> None:
        self.code = code.lstrip("<=|>") if isinstance(code, str) else ""
        self.big_endian = isinstance(code, str) and code.startswith(">")

    def finish(self, state: object, _: Budget) -> None:
        """Take the byte order from the state (version, order, ...)."""
        if isinstance(state, tuple) and len(state) > 1 and isinstance(state[1], str):
            self.big_endian = state[1] == ">"
        if isinstance(state, tuple) and len(state) > 3 and state[3] is not None:
            self.code = ""  # named fields: a table, not a tensor

    @property
    def torch_name(self) -> str | None:
        """Torch's name of this element type, None when it has none (text, dates, objects, tables)."""
        return ARRAY_TYPES.get(self.code)


class ArrayStub:
    """A NumPy array; `tensor` is set when its state arrives."""

    __slots__ = ("tensor",)

    def __init__(self) -> None:
        self.tensor: TensorSpec | Unread = Unread("an unfinished NumPy array")

    def finish(self, state: object, budget: Budget) -> None:
        """Take shape, type, order and bytes from the state (version, shape, dtype, fortran, data)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise BadPickle("holds a NumPy array in an unknown form")
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # written by Python 2
            budget.charge(len(data))
            data = data.encode("latin-1")
        self.tensor = array(data, dtype, shape, bool(fortran))


def array(data: object, dtype: object, shape: object, fortran: bool) -> TensorSpec | Unread:
    """Describe an array whose bytes lie inside the pickle.

    Raises:
        BadPickle: the bytes are not as many as shape and type need.
    """
    name = dtype.torch_name if isinstance(dtype, DtypeStub) else None
    if name is None or not isinstance(data, (bytes, bytearray)):
        return Unread("a NumPy array of objects, text or records")
    sizes = lengths(shape)
    raw = data
    if math.prod(sizes) * ITEM_BYTES[name] != len(raw):
        raise BadPickle("claims a NumPy array of another size than its data")

    def fill(view: memoryview) -> None:
        view[:] = raw

    swapped = isinstance(dtype, DtypeStub) and dtype.big_endian
    storage = StorageSpec(name, len(raw), fill, swapped)
    return TensorSpec(storage, name, 0, sizes, contiguous_stride(sizes, fortran))
