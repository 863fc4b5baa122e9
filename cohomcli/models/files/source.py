"""Bytes of unknown origin with random access: every read is bounded by what is really there."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cohomcli.errors import InputRefused

SAVE_AGAIN = "download or save the model again"
DO_NOT_TRUST = "do not trust this file"


def short(name: object) -> str:
    """A name from a file, quoted and cut so that it can neither act on a terminal nor flood a line."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Source:
    """A seekable stream of `size` bytes; `label` is how errors name it."""

    def __init__(self, stream: BinaryIO, size: int, label: str) -> None:
        self.stream, self.size, self.label = stream, size, label

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes from `offset`.

        Raises:
            InputRefused: the bytes are not there.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise self.corrupt("it is cut short, or points past its own end")
        self.stream.seek(offset)
        data = self.stream.read(count)
        if len(data) != count:
            raise self.corrupt("it became shorter while it was read")
        return data

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset`.

        Raises:
            InputRefused: fewer bytes are there.
        """
        if offset < 0 or offset + len(view) > self.size:
            raise self.corrupt("it is cut short, or points past its own end")
        self.stream.seek(offset)
        filled = 0
        while filled < len(view):
            count = self.stream.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                raise self.corrupt("it became shorter while it was read")
            filled += count

    def corrupt(self, why: str, hint: str = SAVE_AGAIN) -> InputRefused:
        """The error for a file that contradicts itself."""
        return InputRefused(f"{self.label!r} is corrupt: {why}", hint)

    def unsafe(self, why: str, hint: str = DO_NOT_TRUST) -> InputRefused:
        """The error for a file that asks for what no honest file needs."""
        return InputRefused(f"{self.label!r} is refused: {why}", hint)


class Bounded:
    """A stream for a parser: `read(n)` never asks the operating system for more bytes than remain.

    A pickle can claim a string of 10^18 bytes; a buffered file would try to allocate it before reading.
    """

    def __init__(self, source: Source, offset: int) -> None:
        self._stream, self._at, self._size = source.stream, offset, source.size
        source.stream.seek(offset)

    def read(self, count: int) -> bytes:
        """At most `count` bytes."""
        data = self._stream.read(max(0, min(count, self._size - self._at)))
        self._at += len(data)
        return data

    def readline(self) -> bytes:
        """The rest of the line, its end included."""
        line = self._stream.readline(1 << 20)
        self._at += len(line)
        return line

    def tell(self) -> int:
        """The position of the next byte."""
        return self._at


Parseable = Bounded | io.BytesIO


def parser_stream(source: Source, offset: int) -> Parseable:
    """A stream from `offset` whose reads are bounded by what is there; bytes in memory bound themselves."""
    if isinstance(source.stream, io.BytesIO):
        source.stream.seek(offset)
        return source.stream
    return Bounded(source, offset)


def from_bytes(data: bytes, label: str) -> Source:
    """A source over bytes in memory."""
    return Source(io.BytesIO(data), len(data), label)


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a regular file for reading.

    Raises:
        InputRefused: missing, not a regular file (a device or pipe never ends), or not readable.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputRefused(f"{str(path)!r} is not a regular file", "give the path of a model file")
        with path.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            yield Source(stream, size, str(path))
    except FileNotFoundError as error:
        raise InputRefused(f"no such file: {str(path)!r}", "check the path") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputRefused(f"cannot read {str(path)!r}: {reason}", "check its permissions") from error
