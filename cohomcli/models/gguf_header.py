"""Read a GGUF header, not its tensors, without any package: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohomcli.errors import InputRefused

# metadata value types: struct codes of the scalars; 8 is a string, 9 an array
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
# tensor types of ggml: number -> (name, elements per block, bytes per block)
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class GgufHeader:
    """Scalar and string metadata (an array is given by its length), elements of all tensors, types by falling share."""

    metadata: dict[str, Any]
    n_parameters: int
    dtypes: tuple[str, ...]

    @property
    def architecture(self) -> str:
        """The architecture's name, e.g. "llama"."""
        return str(self.metadata.get("general.architecture", "unknown"))

    def number(self, key: str) -> int | None:
        """An integer of this architecture, e.g. `block_count`; None when absent."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) else None


def read_gguf_header(path: Path) -> GgufHeader:
    """Parse the header and check that the file holds every tensor it lists.

    Raises:
        InputRefused: not GGUF, an unknown version or tensor type, a corrupt header, or a file cut short.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data), path)
    except OSError as error:
        raise InputRefused(f"cannot read {str(path)!r}: {error.strerror}", "check its permissions") from error
    except (struct.error, ValueError, RecursionError, OverflowError) as error:
        raise InputRefused(f"{str(path)!r} is not a complete GGUF file", "download it again") from error


class _Cursor:
    """Little-endian reads from a buffer; reading past its end raises struct.error."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def text(self) -> str:
        length = self.number("Q")
        if length > len(self.data) - self.at:
            raise ValueError("a string runs past the end")
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A metadata value; an array is walked over and given by its length."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_code(kind))
        item, count = self.number("I"), self.number("Q")
        if item in (_STRING, _ARRAY):
            for _ in range(count):
                self.value(item)
        else:
            self.at += count * struct.calcsize("<" + _code(item))
        return count


def _code(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"unknown metadata type {kind}")
    return _SCALARS[kind]


def _parse(cursor: _Cursor, path: Path) -> GgufHeader:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("no GGUF magic")
    cursor.at = 4
    version = cursor.number("I")
    if version not in (2, 3):
        raise InputRefused(f"{str(path)!r} has GGUF version {version}", "convert it to version 3")
    n_tensors, n_values = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(n_values):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    elements: Counter[str] = Counter()
    end = 0
    for _ in range(n_tensors):
        name, n_elements, finish = _tensor(cursor, path)
        elements[name] += n_elements
        end = max(end, finish)
    alignment = metadata.get("general.alignment", 32)
    start = -(-cursor.at // max(1, int(alignment))) * max(1, int(alignment))
    if start + end > len(cursor.data):
        lacking = start + end - len(cursor.data)
        raise InputRefused(f"{str(path)!r} is cut short: {lacking:,} bytes are missing", "download it again")
    return GgufHeader(metadata, sum(elements.values()), tuple(name for name, _ in elements.most_common()))


def _tensor(cursor: _Cursor, path: Path) -> tuple[str, int, int]:
    """One tensor's type name, number of elements, and the end of its data relative to the data section."""
    cursor.text()
    n_elements = math.prod(cursor.number("Q") for _ in range(cursor.number("I")))
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in TENSOR_TYPES:
        raise InputRefused(f"{str(path)!r} stores tensors of the unknown ggml type {kind}", "convert it to Q8_0 or F16")
    name, per_block, n_bytes = TENSOR_TYPES[kind]
    return name, n_elements, offset + -(-n_elements // per_block) * n_bytes
