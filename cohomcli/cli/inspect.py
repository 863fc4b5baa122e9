"""`cohom inspect`: what is this, and what would an analysis of it need?"""

from __future__ import annotations

from typing import Any

import typer

from cohomcli.cli.console import print_json, setup_logging
from cohomcli.cli.options import JSON, MODELS, TALK, add_command, argument

_LOADING = tuple(flag for flag in MODELS if flag.key.startswith("loading."))


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    what = argument("target", str, "A model (any --model value), a run folder, or a file or folder of texts.")
    add_command(app, "inspect", inspect, (*_LOADING, *JSON, *TALK), (what,))


def inspect(values: dict[str, Any]) -> int:
    """Say what a model, run folder or data file is, and what analysing it would take.

    Of model folders and hub models only settings and headers are read; a single file is read whole, and nothing in it
    is run.
    """
    from cohomcli.jobs.inspect import inspect as job

    setup_logging(values["quiet"], values["verbose"])
    document = job(values["target"], {flag.key: values[flag.parameter] for flag in _LOADING})
    if values["json_output"]:
        print_json(document)
    else:
        from cohomcli.cli.show import show_inspection

        show_inspection(document)
    return 0
