"""`cohom analyze-precision` and its alias `cohom precision`: a verified mixed-precision plan."""

from __future__ import annotations

from typing import Any

import typer

from cohomcli.cli.analysis import execute
from cohomcli.cli.options import (
    CONFIG,
    DATA,
    DRY_RUN,
    GATES,
    JSON,
    MACHINE,
    MODELS,
    OUTPUT,
    PRECISION,
    PRECISION_INPUTS,
    RESUME,
    TALK,
    add_command,
)

NAME, ALIAS = "analyze-precision", "precision"


def register(app: typer.Typer) -> None:
    """Add the command and its alias to the application."""
    texts = [flag for flag in DATA if flag.key not in ("data.samples", "activations.max_length")]
    flags = (
        *MODELS, *texts, *PRECISION, *PRECISION_INPUTS, *MACHINE, *OUTPUT, *GATES, *CONFIG, *JSON, *TALK, *DRY_RUN,
        *RESUME,
    )  # fmt: skip
    add_command(app, NAME, analyze_precision, flags)
    add_command(app, ALIAS, analyze_precision, flags)


def analyze_precision(values: dict[str, Any]) -> int:
    """Plan formats: which op and weight can run in which precision, how sure that is, and what it saves.

    The plan is made on calibration inputs, run there, corrected, and measured on held-out inputs.
    Exit code 0: the error is within --eps; 4: it is not; 1: a --fail-on gate tripped.
    """
    return execute(NAME, values)
