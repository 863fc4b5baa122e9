"""`cohom prune`: remove weights or channels, keeping what the next layer reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from cohomcli.cli.analysis import configured, print_gates, print_outcome, print_plan, run_job
from cohomcli.cli.options import (
    CONTROL_OPTIONS,
    DATA,
    DRY_RUN,
    MACHINE,
    MODELS,
    PRUNING,
    RESUME,
    add_command,
)

_NOT_HERE = {"num_layers", "hf_model", "models_list", "datasets_list", "activations.cache", "activations.store"}
_NOT_HERE |= {"data.samples", "activations.max_length"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    flags = [
        flag
        for flag in (*MODELS, *DATA, *PRUNING, *MACHINE, *CONTROL_OPTIONS, *DRY_RUN, *RESUME)
        if flag.key not in _NOT_HERE
    ]
    add_command(app, "prune", prune, flags)


def prune(values: dict[str, Any]) -> int:
    """Prune a language model in one pass over calibration text, and save a folder that from_pretrained loads.

    The report has the perplexity before and after on held-out text, in and out of domain.
    """
    from cohomcli.jobs import prune as job

    config = configured(values)
    if values["dry_run"]:
        print_plan(job.plan(config), values["json_output"])
        return 0
    outcome = run_job(values, config, job.prune, job.resume)
    print_outcome(outcome, values["json_output"])
    if not values["quiet"]:
        _print_speed(outcome.folder)
    print_gates(outcome)
    code: int = outcome.exit_code
    return code


def _print_speed(folder: Path) -> None:
    """One line on stderr: what a forward pass cost before and costs now."""
    from cohomcli.jobs.lowrank import FACTORED_PREFILL
    from cohomcli.jobs.prune import PREFILL
    from cohomcli.runs.files import read_json

    manifest = read_json(folder / "manifest.json")
    measured = manifest.get(PREFILL)
    if measured is None:  # it takes the whole model
        return
    before, after = measured
    factored = manifest.get(FACTORED_PREFILL)
    now = after if factored is None else factored
    saved = f"{1 - now / before:.0%} less" if now < before else "no less"
    line = f"cohom: a forward pass over 512 tokens took {before:.3f} CPU seconds and takes {now:.3f}: {saved}"
    if factored is not None:
        line += f" (with factors.safetensors; model/ alone, plain matrices of the same size, {after:.3f})"
    print(line, file=sys.stderr)  # noqa: T201
