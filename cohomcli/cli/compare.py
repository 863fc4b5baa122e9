"""`cohom compare`: runs or models side by side."""

from __future__ import annotations

from functools import partial
from typing import Any

import typer

from cohomcli.cli.analysis import configured, report, run_job, warn_ignored
from cohomcli.cli.options import (
    COMPARE,
    CONTROL_OPTIONS,
    ENGINE_OPTIONS,
    METRICS,
    add_command,
    argument,
    config_flags,
)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    what = argument("references", list[str] | None, "Run folders, latest, or models; commas also separate.", None)
    every = (*COMPARE, *ENGINE_OPTIONS, *METRICS, *CONTROL_OPTIONS)
    flags = [flag for flag in every if flag.key not in ("num_layers", "hf_model")]
    add_command(app, "compare", compare, flags, (what,))


def compare(values: dict[str, Any]) -> int:
    """Compare runs, models or checkpoints: tables, drift of every layer, distances, correlations, pictures.

    A model is taken from its newest run under the output folder, or analysed now if there is none.
    Without arguments the newest run of every model there is compared. Drift is measured from --baseline, or else from
    the first that is named: --fail-on 'topology.layers.max_drift > 0.1' ends the command with exit code 1 above it.
    """
    from cohomcli.jobs.compare import compare as job

    warn_ignored(values)
    config = configured(values)
    named = [part for text in values["references"] or [] for part in text.split(",") if part]
    references = [*named, *(config_flags(values)["models"] or [])]
    return report(values, run_job(values, config, partial(job, references)))
