"""`cohom circuits`: which heads, neurons or edges carry a behaviour."""

from __future__ import annotations

import sys
from typing import Any

import typer

from cohomcli.cli.analysis import print_gates, print_outcome, print_plan
from cohomcli.cli.console import progress_bars, setup_logging
from cohomcli.cli.options import CIRCUITS, CONTROL_OPTIONS, DRY_RUN, MACHINE, MODELS, add_command, config_flags

_NOT_HERE = {"num_layers", "hf_model", "models_list", "activations.cache", "activations.store"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    flags = [flag for flag in (*MODELS, *CIRCUITS, *MACHINE, *CONTROL_OPTIONS, *DRY_RUN) if flag.key not in _NOT_HERE]
    add_command(app, "circuits", circuits, flags)


def circuits(values: dict[str, Any]) -> int:
    """Find the smallest set of heads, neurons or edges that keeps a decoder's behaviour on pairs of prompts.

    Half of the pairs find it, the other half measure what it keeps. `cohom prune --protect` leaves it untouched.
    """
    from cohomcli.config import resolve as resolve_config
    from cohomcli.jobs import circuits as job

    setup_logging(values["quiet"], values["verbose"])
    config = resolve_config(values["config_file"], values["overrides"] or (), config_flags(values))
    if values["dry_run"]:
        print_plan(job.plan(config), values["json_output"])
        return 0
    with progress_bars(values["quiet"]) as progress:
        outcome = job.circuits(config, sys.argv[1:], progress)
    print_outcome(outcome, values["json_output"])
    print_gates(outcome)
    return outcome.exit_code
