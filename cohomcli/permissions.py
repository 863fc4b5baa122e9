"""Files that others may read: what libraries write for their owner alone gets the rights that the umask leaves."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def open_up(paths: Iterable[Path]) -> None:
    """Give files, and folders, the rights of new ones; safetensors and tempfile make them for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in paths:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
