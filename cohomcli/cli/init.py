"""`cohom init`: write a commented configuration to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from cohomcli.cli.options import Flag, add_command, argument, config_flags

_PANEL = "Content"
_FLAGS = (
    Flag("models", ("--model", "-m"), list[str], "Model to start from (repeatable).", _PANEL),
    Flag("data.samples", ("--samples", "-n"), int, "Distinct texts to analyse.", _PANEL),
    Flag("force", ("--force",), bool, "Replace an existing file.", _PANEL, default=False),
)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    where = argument("file", str, "File to write; a bare name NAME becomes configs/NAME.yaml.", "cohom.yaml")
    add_command(app, "init", init, _FLAGS, (where,))


def init(values: dict[str, Any]) -> int:
    """Write a configuration file with every key, its default and what it means."""
    from cohomcli.config import resolve as resolve_config
    from cohomcli.jobs.init import write_config

    target = Path(values["file"])
    if target.parent == Path() and not target.suffix:
        target = Path("configs") / f"{target.name}.yaml"
    write_config(target, resolve_config(flags=config_flags(values), environ={}), values["force"])
    typer.echo(str(target))
    return 0
