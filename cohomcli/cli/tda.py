"""`cohom tda`: the persistence engine alone."""

from __future__ import annotations

from typing import Any

import typer

from cohomcli.cli.analysis import execute
from cohomcli.cli.options import CONTROL_OPTIONS, DRY_RUN, ENGINE_OPTIONS, RESUME, add_command


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, "tda", tda, (*ENGINE_OPTIONS, *CONTROL_OPTIONS, *DRY_RUN, *RESUME))


def tda(values: dict[str, Any]) -> int:
    """Topology alone: persistent homology of every layer, without language metrics."""
    return execute("tda", values, {"metrics.perplexity": False})
