"""Tensors in certificates: hashed records, their values beside them or in a safetensors file, read without torch."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, str] = {"float64": "<f8", "float32": "<f4", "int64": "<i8", "bool": "|b1"}
_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
                "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}  # fmt: skip
_NUMPY = {**DTYPES, "float16": "<f2", "bfloat16": "<u2", "int32": "<i4", "int16": "<i2", "int8": "|i1", "uint8": "|u1"}
_MOST_HEADER = 100 << 20


class BadTensor(ValueError):
    """A record or file is malformed, or does not have the hash it should."""


def tensor_hash(array: NDArray[Any]) -> str:
    """SHA-256 of dtype, shape and little-endian bytes.

    Raises:
        BadTensor: a dtype that certificates do not hold.
    """
    if array.dtype.name not in DTYPES:
        raise BadTensor(f"a certificate holds no {array.dtype}")
    head = f"{array.dtype.name}:{','.join(map(str, array.shape))}:"
    raw = np.ascontiguousarray(array).astype(DTYPES[array.dtype.name], copy=False).tobytes()
    return hashlib.sha256(head.encode() + raw).hexdigest()


def inline(array: NDArray[Any]) -> dict[str, Any]:
    """A record with the values beside it: integers and booleans as they are, reals in hexadecimal, all exact."""
    flat = array.ravel().tolist()
    values = [float(x).hex() for x in flat] if array.dtype.kind == "f" else flat
    return describe(array) | {"values": values}


def describe(array: NDArray[Any]) -> dict[str, Any]:
    """A record without values, for a tensor that lies in a file."""
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": tensor_hash(array)}


def from_inline(record: Mapping[str, Any]) -> NDArray[Any]:
    """The tensor of a record made by `inline`.

    Raises:
        BadTensor: malformed, inexact in its dtype, or with another hash.
    """
    try:
        dtype, shape, values = record["dtype"], tuple(record["shape"]), record["values"]
        if dtype not in DTYPES or set(record) != {"dtype", "shape", "sha256", "values"}:
            raise BadTensor("not a tensor record")
        real = dtype.startswith("float")
        kind = bool if dtype == "bool" else str if real else int
        if any(type(x) is not kind for x in values) or any(type(n) is not int or n < 0 for n in shape):
            raise BadTensor("a tensor record's values or sizes have the wrong type")
        array = np.array([float.fromhex(x) for x in values] if real else values, dtype=dtype).reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadTensor(f"malformed tensor record: {error}") from error
    if real and [float(x).hex() for x in array.ravel().tolist()] != list(values):
        raise BadTensor(f"a value is not written as the {dtype} it is")
    return checked(array, record)


def checked(array: NDArray[Any], record: Mapping[str, Any]) -> NDArray[Any]:
    """`array`, which must have the dtype, shape and hash that a record states.

    Raises:
        BadTensor: it has not.
    """
    if {key: record.get(key) for key in ("dtype", "shape", "sha256")} != describe(array):
        raise BadTensor("a tensor does not have the dtype, shape or hash that its record states")
    return array


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of a safetensors file, mapped and not copied; 16-bit floats as float32, small integers as int64.

    Raises:
        BadTensor: the header is malformed or points outside the file.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        lead = file.read(8)
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else size
        if not 2 <= length <= min(_MOST_HEADER, size - 8):
            raise BadTensor(f"{path.name} is no safetensors file")
        head = file.read(length)
    try:
        header = json.loads(head)
        entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length) if size > 8 + length else np.zeros(0, "u1")
        return {name: _tensor(data, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadTensor(f"{path.name}: {error}") from error


def _tensor(data: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[Any]:
    dtype, shape, (start, end) = _SAFETENSORS[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    kind = np.dtype(_NUMPY[dtype])
    if not 0 <= start <= end <= len(data) or end - start != math.prod(shape) * kind.itemsize:
        raise BadTensor("a tensor lies outside the file")
    raw = np.asarray(data[start:end]).view(kind) if start % kind.itemsize == 0 else np.frombuffer(
        data[start:end].tobytes(), dtype=kind
    )  # fmt: skip
    array: NDArray[Any] = raw.reshape(shape)
    if dtype == "bfloat16":
        return (array.astype("<u4") << 16).view("<f4")
    if dtype == "float16":
        return array.astype("<f4")
    return array.astype(np.int64) if dtype in ("int32", "int16", "int8", "uint8") else array


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write float32, float64, int64 and bool tensors, by name, to a safetensors file."""
    names = {value: key for key, value in _SAFETENSORS.items()}
    header: dict[str, Any] = {}
    start = 0
    for name, array in tensors.items():
        end = start + array.size * array.dtype.itemsize
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
        start = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).astype(DTYPES[array.dtype.name], copy=False).data)
