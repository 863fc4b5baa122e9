"""`cohom circuits`: which heads, neurons or edges carry a behaviour."""

from __future__ import annotations

from typing import Any

import typer

from cohomcli.cli.analysis import configured, print_plan, report, run_job
from cohomcli.cli.options import CIRCUITS, CONTROL_OPTIONS, DRY_RUN, MACHINE, MODELS, add_command

_NOT_HERE = {"num_layers", "hf_model", "models_list", "activations.cache", "activations.store"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    flags = [flag for flag in (*MODELS, *CIRCUITS, *MACHINE, *CONTROL_OPTIONS, *DRY_RUN) if flag.key not in _NOT_HERE]
    add_command(app, "circuits", circuits, flags)


def circuits(values: dict[str, Any]) -> int:
    """Find the smallest set of heads, neurons or edges that keeps a decoder's behaviour on pairs of prompts.

    Half of the pairs find it, the other half measure what it keeps. `cohom prune --protect` leaves it untouched.
    """
    from cohomcli.jobs import circuits as job

    config = configured(values)
    if values["dry_run"]:
        print_plan(job.plan(config), values["json_output"])
        return 0
    return report(values, run_job(values, config, job.circuits))
