"""`cohom generate`: grids from a trained model of grids, or partial grids completed."""

from __future__ import annotations

from typing import Any

import typer

from cohomcli.cli.analysis import configured, report, run_job
from cohomcli.cli.options import CONTROL_OPTIONS, GENERATION, MACHINE, MODELS, add_command

_HERE = {"models", "compute.seed", "compute.device", "compute.threads"}
_NOT_HERE = {"activations.cache", "activations.store"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    own = [flag for flag in (*MODELS, *MACHINE) if flag.key in _HERE]
    flags = [*own, *GENERATION, *(flag for flag in CONTROL_OPTIONS if flag.key not in _NOT_HERE)]
    add_command(app, "generate", generate, flags)


def generate(values: dict[str, Any]) -> int:
    """Generate grids with a trained model of grids, all cells in a few passes, or complete partial ones.

    --model names the run folder of `cohom train --objective grid`, or its model folder.
    """
    from cohomcli.jobs import generate as job

    return report(values, run_job(values, configured(values), job.generate))
