"""Activations in safetensors files that are written and read through memory maps, so that they may exceed memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.models.safetensors_header import read_header

# Gives the (n_texts, width) float32 array that a layer's activations are collected into.
Allocate = Callable[[str, int, int], NDArray[np.float32]]
COPY_BYTES = 64 * 2**20


def in_memory(name: str, n_texts: int, width: int) -> NDArray[np.float32]:
    """An uninitialised array in memory."""
    return np.empty((n_texts, width), dtype=np.float32)


def on_disk(folder: Path) -> Allocate:
    """Arrays mapped from one safetensors file per layer in `folder`; raises OSError when the disk is full."""

    def allocate(name: str, n_texts: int, width: int) -> NDArray[np.float32]:
        path = folder / f"{len(list(folder.iterdir())):04d}.safetensors"
        header, offset = _header({name: (n_texts, width)}, {})
        with path.open("wb") as stream:
            stream.write(header)
            stream.truncate(offset + 4 * n_texts * width)
        return np.memmap(path, dtype=np.float32, mode="r+", offset=offset, shape=(n_texts, width))

    return allocate


def write_layers(stream: IO[bytes], layers: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file with all `layers` (2-D float32), copying a block of rows at a time."""
    header, _ = _header({name: x.shape for name, x in layers.items()}, metadata)
    stream.write(header)
    for x in layers.values():
        rows = max(1, COPY_BYTES // max(1, 4 * x.shape[1]))
        for start in range(0, len(x), rows):
            stream.write(np.ascontiguousarray(x[start : start + rows], dtype="<f4").tobytes())


def map_layers(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """The tensors of a file of `write_layers`, mapped read-only, and its metadata.

    Raises:
        InputRefused: damaged, or no safetensors file.
        ValueError: its tensors are not 2-D float32.
    """
    entries = read_header(path)
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    layers: dict[str, NDArray[np.float32]] = {}
    for name, entry in entries.items():
        if entry.dtype != "F32" or len(entry.shape) != 2:
            raise ValueError(f"{name!r} is no 2-D float32 tensor")
        offset = 8 + length + int(header[name]["data_offsets"][0])
        layers[name] = np.memmap(path, dtype="<f4", mode="r", offset=offset, shape=entry.shape)
    return layers, header.get("__metadata__", {})


def _header(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The first bytes of a file with these float32 tensors in this order, and how many they are (a multiple of 8)."""
    document: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        document[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text)
