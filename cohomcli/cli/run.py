"""`cohom run`: every engine there is, on one or several models and data sets."""

from __future__ import annotations

from typing import Any

import typer

from cohomcli.cli.analysis import execute
from cohomcli.cli.options import (
    CONTROL_OPTIONS,
    DRY_RUN,
    ENGINE_OPTIONS,
    METRICS,
    PRECISION,
    PRECISION_STAGE,
    RESUME,
    add_command,
)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    flags = (*ENGINE_OPTIONS, *METRICS, *PRECISION_STAGE, *PRECISION, *CONTROL_OPTIONS, *DRY_RUN, *RESUME)
    add_command(app, "run", run, flags)


def run(values: dict[str, Any]) -> int:
    """Analyse models: topology of every layer, perplexity, a mixed-precision plan, report.

    Without options: the built-in tiny-gpt on the built-in corpus, with no network.
    """
    return execute("run", values)
