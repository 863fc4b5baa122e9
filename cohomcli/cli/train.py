"""`cohom train`: train or fine-tune a language model, with structural objectives if wanted."""

from __future__ import annotations

from typing import Any

import typer

from cohomcli.cli.analysis import configured, print_plan, report, run_job
from cohomcli.cli.options import (
    ABLATION,
    CONTROL_OPTIONS,
    DATA,
    DRY_RUN,
    MACHINE,
    MODELS,
    RESUME,
    TRAINING,
    add_command,
)

_NOT_HERE = {"num_layers", "hf_model", "models_list", "datasets_list", "activations.cache", "activations.store"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    flags = [
        flag
        for flag in (*MODELS, *DATA, *TRAINING, *ABLATION, *MACHINE, *CONTROL_OPTIONS, *DRY_RUN, *RESUME)
        if flag.key not in _NOT_HERE
    ]
    add_command(app, "train", train, flags)


def train(values: dict[str, Any]) -> int:
    """Train or fine-tune a causal or masked language model, with checkpoints that resume exactly.

    --model names where to start; training.architecture in a configuration file builds a new model instead. --ablate
    asks instead whether the structural losses help, against a placebo and others, over several seeds.
    """
    from cohomcli.jobs import train as job

    config = configured(values)
    if values["dry_run"]:
        print_plan(job.plan(config), values["json_output"])
        return 0
    outcome = run_job(values, config, job.train, job.resume)
    if outcome is None:  # not the first process of a distributed launch
        return 0
    return report(values, outcome)
