"""`cohom prune`: remove weights or channels, keeping what the next layer reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from cohomcli.cli.analysis import print_gates, print_outcome, print_plan
from cohomcli.cli.console import progress_bars, setup_logging
from cohomcli.cli.options import (
    CONTROL_OPTIONS,
    DATA,
    DRY_RUN,
    MACHINE,
    MODELS,
    PRUNING,
    RESUME,
    add_command,
    config_flags,
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
    from cohomcli.config import resolve as resolve_config
    from cohomcli.jobs import prune as job

    setup_logging(values["quiet"], values["verbose"])
    config = resolve_config(values["config_file"], values["overrides"] or (), config_flags(values))
    if values["dry_run"]:
        print_plan(job.plan(config), values["json_output"])
        return 0
    with progress_bars(values["quiet"]) as progress:
        if values["resume"]:
            outcome = job.resume(Path(config.output.dir), values["resume"], sys.argv[1:], progress)
        else:
            outcome = job.prune(config, sys.argv[1:], progress)
    print_outcome(outcome, values["json_output"])
    if not values["quiet"]:
        _print_speed(outcome.folder)
    print_gates(outcome)
    return outcome.exit_code


def _print_speed(folder: Path) -> None:
    """One line on stderr: what a forward pass cost before and costs now."""
    from cohomcli.jobs.prune import PREFILL
    from cohomcli.runs.files import read_json

    before, after = read_json(folder / "manifest.json")[PREFILL]
    saved = f"{1 - after / before:.0%} less" if after < before else "no less"
    print(  # noqa: T201
        f"cohom: a forward pass over 512 tokens took {before:.3f} CPU seconds and takes {after:.3f}: {saved}",
        file=sys.stderr,
    )
