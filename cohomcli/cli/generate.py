"""`cohom generate`: grids from a trained model of grids, or partial grids completed."""

from __future__ import annotations

import sys
from typing import Any

import typer

from cohomcli.cli.analysis import print_gates, print_outcome
from cohomcli.cli.console import progress_bars, setup_logging
from cohomcli.cli.options import CONTROL_OPTIONS, GENERATION, MACHINE, MODELS, add_command, config_flags

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
    from cohomcli.config import resolve as resolve_config
    from cohomcli.jobs import generate as job

    setup_logging(values["quiet"], values["verbose"])
    config = resolve_config(values["config_file"], values["overrides"] or (), config_flags(values))
    with progress_bars(values["quiet"]) as progress:
        outcome = job.generate(config, sys.argv[1:], progress)
    print_outcome(outcome, values["json_output"])
    print_gates(outcome)
    return outcome.exit_code
