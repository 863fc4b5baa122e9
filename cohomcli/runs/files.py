"""Writing files whole or not at all, and strict JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.permissions import open_up

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the operating system's write errors into one clear line about `target`.

    Raises:
        AnalysisIncomplete: the disk or quota is full.
        UsageError: the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise AnalysisIncomplete(
                f"no space left while writing {str(target)!r}", "free some space or choose another --output-dir"
            ) from error
        if error.errno in _DENIED:
            raise UsageError(
                f"cannot write {str(target)!r}: {error.strerror}", "choose another folder with --output-dir"
            ) from error
        raise


def write_atomic(target: Path, data: bytes | str) -> None:
    """Write `data` to a temporary file beside `target`, flush it to disk, then rename it into place."""
    with write_whole(target) as stream:
        stream.write(data.encode("utf-8") if isinstance(data, str) else data)


@contextmanager
def write_whole(target: Path) -> Iterator[IO[bytes]]:
    """A stream to a temporary file beside `target`, which takes its place when all is written and flushed to disk."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            open_up([Path(name)])
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def to_json(value: Any, indent: int | None = 2) -> str:
    """Strict JSON with sorted keys; NaN and infinities are refused, because no reader agrees on them."""
    return json.dumps(value, indent=indent, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        InputRefused: missing, unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputRefused(f"cannot read {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        hint = "the run folder is damaged; run the command again"
        raise InputRefused(f"{str(path)!r} is not valid JSON", hint) from error
    if not isinstance(value, dict):
        raise InputRefused(f"{str(path)!r} does not hold a JSON object")
    return value


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
