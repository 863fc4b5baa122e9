"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.permissions import open_up

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write into; it is flushed and renamed to `out` at the end, or removed on an error.

    Raises:
        UsageError: `out` exists and is not an empty folder, or cannot be written.
        AnalysisIncomplete: the disk or quota is full.
    """
    from safetensors import SafetensorError

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{str(out)!r} exists", "choose a new folder")
    staging: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        yield staging
        _publish(staging, out)
    except OSError as error:
        if error.errno in _FULL:
            raise AnalysisIncomplete(f"no space left while writing {str(out)!r}", "free some space") from error
        raise UsageError(f"cannot write {str(out)!r}: {error.strerror}", "choose another folder") from error
    except SafetensorError as error:  # safetensors wraps the system's errors of writing
        raise AnalysisIncomplete(f"cannot write {str(out)!r}: {error}", "free some space") from error
    finally:
        if staging is not None and staging.exists():
            shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, out: Path) -> None:
    """Readable by whom the umask allows, on disk, then in place."""
    open_up([*staging.iterdir(), staging])
    for file in staging.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    staging.replace(out)
