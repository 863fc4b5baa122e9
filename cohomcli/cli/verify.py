"""`cohom verify`: check certificates in this process, which never loads torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from cohomcli.cli.console import print_json, progress_bars, setup_logging
from cohomcli.cli.options import JSON, TALK, add_command, argument
from cohomcli.names import printable


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    files = argument("files", list[Path], "Certificate files, or folders that hold some.")
    add_command(app, "verify", verify, (*JSON, *TALK), (files,))


def verify(values: dict[str, Any]) -> int:
    """Check certificates: recompute what they claim, in exact and ball arithmetic, without torch.

    Exit code 0: all are verified; 1: one is rejected; 3: one cannot be read.
    """
    from cohomcli.jobs.verify import verify_all

    setup_logging(values["quiet"], values["verbose"])
    with progress_bars(values["quiet"]) as progress:
        outcome = verify_all(values["files"], progress)
    if values["json_output"]:
        print_json(outcome.document)
    else:
        for verdict in outcome.verdicts:
            why = f": {verdict.reason}" if verdict.reason else f" ({verdict.status}): {verdict.statement}"
            print(printable(f"{verdict.state} {verdict.path}{why}"))  # noqa: T201
    return outcome.exit_code
