"""Read and check the header of a safetensors file, not its data: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohomcli.errors import InputRefused

_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's reference implementation
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor: element type as the format names it (`F32`, `BF16`), shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Tensor name -> entry.

    Raises:
        InputRefused: not a safetensors file, a corrupt header, or data shorter or longer than the header promises.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise _corrupt(file, "its header length is impossible")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise InputRefused(f"cannot read {str(file)!r}: {error.strerror}", "check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(file, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _corrupt(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry(file, name, value) for name, value in header.items()}
    promised = 8 + length + sum(entry.n_bytes for entry in entries.values())
    if promised != size:
        raise _corrupt(file, f"its header promises {promised:,} bytes and the file has {size:,}")
    return entries


def _entry(file: Path, name: str, value: Any) -> TensorEntry:
    """Check one header entry: the bytes between its offsets must be what its shape and type need."""
    try:
        dtype, shape = str(value["dtype"]), tuple(int(length) for length in value["shape"])
        begin, end = (int(offset) for offset in value["data_offsets"])
    except (TypeError, KeyError, ValueError) as error:
        raise _corrupt(file, f"its header entry {name!r} is malformed") from error
    bits = _ITEM_BITS.get(dtype)
    if bits is None:
        raise InputRefused(f"{str(file)!r} stores {name!r} as {dtype!r}, which is not supported", "convert it to F32")
    entry = TensorEntry(dtype, shape, end - begin)
    if min(shape, default=0) < 0 or begin < 0 or entry.n_bytes * 8 != entry.n_elements * bits:
        raise _corrupt(file, f"its header entry {name!r} contradicts itself")
    return entry


def _corrupt(file: Path, why: str) -> InputRefused:
    return InputRefused(f"{str(file)!r} is corrupt: {why}", "download or save the model again")
