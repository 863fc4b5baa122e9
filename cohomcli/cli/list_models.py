"""`cohom list-models`: the names that --model knows."""

from __future__ import annotations

from typing import Any

import typer

from cohomcli.cli.console import print_json
from cohomcli.cli.options import JSON, add_command


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "list-models", list_models, JSON)


def list_models(values: dict[str, Any]) -> int:
    """List the built-in models and presets. Any hub id or local folder works too."""
    from cohomcli.jobs.catalogue import catalogue

    rows = catalogue()
    if values["json_output"]:
        print_json({"schema": "cohom.models/1", "command": "list-models", "models": rows})
    else:
        from cohomcli.cli.show import show_models

        show_models(rows)
    return 0
