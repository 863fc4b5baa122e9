"""NumPy's own files: `.npy` arrays and `.npz` archives of them, without NumPy's pickle (NEP 1)."""

from __future__ import annotations

import ast
import math

from cohomcli.errors import AnalysisIncomplete
from cohomcli.models.files.archive import Archive
from cohomcli.models.files.contents import Leaf
from cohomcli.models.files.limits import Limits
from cohomcli.models.files.numpystubs import DtypeStub
from cohomcli.models.files.objects import (
    ITEM_BYTES,
    BadPickle,
    StorageSpec,
    TensorSpec,
    Unread,
    contiguous_stride,
    lengths,
)
from cohomcli.models.files.source import Source, from_bytes
from cohomcli.models.memory import available_bytes, gigabytes

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # NumPy's own limit: the literal parser is not meant for long hostile text


def read_npy(source: Source) -> Leaf:
    """Describe the one array of a `.npy` file; object arrays, which are pickles, stay unread.

    Raises:
        InputRefused: a damaged header, or data shorter or longer than it promises.
    """
    fields, start = _header(source)
    descr, order, shape = fields.get("descr"), fields.get("fortran_order"), fields.get("shape")
    name = DtypeStub(descr).torch_name
    if name is None:
        return Unread("a NumPy array of objects, text or records")
    try:
        sizes = lengths(shape)
    except BadPickle as error:
        raise source.corrupt("its array has an impossible shape") from error
    n_bytes = math.prod(sizes) * ITEM_BYTES[name]
    if n_bytes != source.size - start:
        raise source.corrupt(f"its array claims {n_bytes:,} bytes and has {source.size - start:,}")
    swapped = isinstance(descr, str) and descr.startswith(">")
    storage = StorageSpec(name, n_bytes, lambda view: source.read_into(start, view), swapped)
    return TensorSpec(storage, name, 0, sizes, contiguous_stride(sizes, order is True))


def read_npz(source: Source, archive: Archive, limits: Limits) -> dict[str, Leaf]:
    """The arrays of a `.npz` archive by name.

    Raises:
        InputRefused: a member is damaged or too large.
        AnalysisIncomplete: the arrays do not fit into memory.
    """
    total = sum(entry.n_bytes for entry in archive.entries.values())
    if 2 * total > available_bytes():
        raise AnalysisIncomplete(
            f"{source.label!r} holds {gigabytes(total)} of arrays", "use a machine with more memory"
        )
    found: dict[str, Leaf] = {}
    for name in archive.entries:
        data = archive.read(name, limits.max_inflated)
        found[name.removesuffix(".npy")] = read_npy(from_bytes(data, source.label))
    return found


def _header(source: Source) -> tuple[dict[object, object], int]:
    """The header's fields, a Python literal (parsed as one, never evaluated), and where the data starts."""
    head = source.read(0, min(12, source.size))
    wide = head[6:7] in (b"\x02", b"\x03")
    start = 12 if wide else 10
    length = int.from_bytes(head[8:start], "little")
    if head[:6] != _MAGIC or length > _MAX_HEADER:
        raise source.corrupt("it has no valid NumPy header")
    try:
        fields = ast.literal_eval(source.read(start, length).decode("utf-8"))
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise source.corrupt("its NumPy header cannot be parsed") from error
    if not isinstance(fields, dict):
        raise source.corrupt("its NumPy header is no mapping")
    return fields, start + length
