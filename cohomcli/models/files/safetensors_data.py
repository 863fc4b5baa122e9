"""Safetensors read into memory (https://github.com/huggingface/safetensors#format): inert by design, checked anyway.

The library maps the file, so that the weights change or vanish with it; here they are read once, like every other kind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cohomcli.models.files.contents import Leaf
from cohomcli.models.files.objects import ITEM_BYTES, BadPickle, StorageSpec, TensorSpec, contiguous_stride, lengths
from cohomcli.models.files.source import Source, short
from cohomcli.models.safetensors_header import read_header

_TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu", "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64",
    "C64": "complex64",
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in _TYPES.items()}


def format_name(dtype: str) -> str:
    """An element type as safetensors writes it (`F32`), or as torch calls it where that format has none."""
    return _NAMES.get(dtype, dtype)


def read_safetensors(source: Source, path: Path) -> tuple[dict[str, Leaf], dict[str, str]]:
    """Descriptions of every tensor, and the file's metadata.

    Raises:
        InputRefused: a corrupt header, an element type we do not know, or data that overlap or leave gaps.
    """
    entries = read_header(path)
    length = int.from_bytes(source.read(0, 8), "little")
    header = json.loads(source.read(8, length))
    start, end = 8 + length, 0
    found: dict[str, Leaf] = {}
    for name, entry in sorted(entries.items(), key=lambda item: header[item[0]]["data_offsets"]):
        begin = int(header[name]["data_offsets"][0])
        if begin != end:
            raise source.corrupt(f"tensor {short(name)} overlaps another, or leaves a gap before it")
        end = begin + entry.n_bytes
        found[name] = _tensor(source, name, _TYPES[entry.dtype], (entry.shape, start + begin))
    metadata = header.get("__metadata__")
    facts: dict[Any, Any] = metadata if isinstance(metadata, dict) else {}
    ordered = {name: found[name] for name in entries}
    return ordered, {str(key): value for key, value in facts.items() if isinstance(value, str)}


def _tensor(source: Source, name: str, dtype: str, place: tuple[tuple[int, ...], int]) -> TensorSpec:
    shape, offset = place
    try:
        sizes = lengths(shape)
    except BadPickle as error:
        raise source.corrupt(f"tensor {short(name)} has an impossible shape") from error
    n_bytes = ITEM_BYTES[dtype]
    for length in sizes:
        n_bytes *= length
    storage = StorageSpec(dtype, n_bytes, lambda view: source.read_into(offset, view))
    return TensorSpec(storage, dtype, 0, sizes, contiguous_stride(sizes))
