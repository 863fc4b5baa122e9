"""The job behind `init`."""

from __future__ import annotations

from pathlib import Path

from cohomcli.config import Config, commented_yaml
from cohomcli.errors import UsageError
from cohomcli.runs.files import write_atomic


def write_config(target: Path, config: Config, force: bool) -> None:
    """Write `config` as commented YAML; an existing file is replaced only with `force`."""
    if target.exists() and not force:
        raise UsageError(f"{str(target)!r} exists already", "choose another name or pass --force")
    write_atomic(target, commented_yaml(config))
