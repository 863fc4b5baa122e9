"""`cohom inspect`: what is this, and what would an analysis of it need?"""

from __future__ import annotations

from typing import Any

import typer

from cohomcli.cli.console import print_json, progress_bars, setup_logging
from cohomcli.cli.options import DATA, JSON, MODELS, TALK, Flag, add_command, argument

_EXACTNESS = Flag(
    "exactness",
    ("--exactness",),
    bool,
    "Run the model on texts: what blocks write and read.",
    "Analysis",
    default=False,
)
_TEXTS = tuple(flag for flag in DATA if flag.key in ("datasets", "data.split", "data.field", "data.unit"))
_LOADING = tuple(flag for flag in MODELS if flag.key.startswith("loading."))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    what = argument("target", str, "A model (any --model value), a run folder, or a file or folder of texts.")
    add_command(app, "inspect", inspect, (*_LOADING, _EXACTNESS, *_TEXTS, *JSON, *TALK), (what,))


def inspect(values: dict[str, Any]) -> int:
    """Say what a model, run folder or data file is, and what analysing it would take.

    Of model folders and hub models only settings and headers are read; a single file is read whole, and nothing in it
    is run. With --exactness the model is run, and for every pair of neighbouring blocks the report says which of the
    directions that one writes the next one reads.
    """
    from cohomcli.jobs.inspect import inspect as job

    setup_logging(values["quiet"], values["verbose"])
    flags = {flag.key: values[flag.parameter] for flag in (*_LOADING, *_TEXTS)}
    with progress_bars(values["quiet"] or not values["exactness"]) as progress:
        document = job(values["target"], flags, values["exactness"], progress)
    if values["json_output"]:
        print_json(document)
    else:
        from cohomcli.cli.show import show_inspection

        show_inspection(document)
    return 0
