"""What the commands that fill a run folder share: read the options, call the job, print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.cli.console import print_json, progress_bars, setup_logging
from cohomcli.cli.options import config_flags
from cohomcli.names import printable

if TYPE_CHECKING:
    from cohomcli.config import Config


def execute(command: str, values: dict[str, Any], forced: dict[str, Any] | None = None) -> int:
    """Resolve the configuration (`forced` keys win over everything), run the analysis, print, return the exit code."""
    from cohomcli.jobs import analyze

    warn_ignored(values)
    config = configured(values, forced)
    if values["dry_run"]:
        return _dry_run(command, config, values["json_output"])
    outcome = run_job(values, config, partial(analyze.analyze, command), partial(analyze.resume, command))
    return report(values, outcome)


def configured(values: dict[str, Any], forced: dict[str, Any] | None = None) -> Config:
    """Set up logging and resolve the configuration; `forced` keys win over everything."""
    from cohomcli.config import resolve

    setup_logging(values["quiet"], values["verbose"])
    return resolve(values["config_file"], values["overrides"] or (), config_flags(values) | (forced or {}))


def run_job(
    values: dict[str, Any], config: Config, start: Callable[..., Any], resume: Callable[..., Any] | None = None
) -> Any:
    """`start(config, argv, progress)` under progress bars, or with --resume `resume(parent, name, argv, progress)`."""
    with progress_bars(values["quiet"]) as progress:
        if resume is not None and values["resume"]:
            return resume(Path(config.output.dir), values["resume"], sys.argv[1:], progress)
        return start(config, sys.argv[1:], progress)


def report(values: dict[str, Any], outcome: Any) -> int:
    """Print the result and the gates that tripped; returns the exit code."""
    print_outcome(outcome, values["json_output"])
    print_gates(outcome)
    code: int = outcome.exit_code
    return code


def print_gates(outcome: Any) -> None:
    """One line on stderr for every gate that tripped, --quiet or not: the exit code needs its reason."""
    for gate in outcome.gates:
        if gate.tripped:
            print(f"cohom: {printable(gate.message)}", file=sys.stderr)  # noqa: T201


def print_outcome(outcome: Any, as_json: bool) -> None:
    """The result on stdout: one JSON document, or tables and the run folder."""
    if as_json:
        print_json(outcome.document | {"run": str(outcome.folder)})
        return
    from cohomcli.cli.show import show_outcome

    show_outcome(outcome)


def warn_ignored(values: dict[str, Any]) -> None:
    """Say that an option of the source system has nothing left to do."""
    if values.get("num_layers") is not None and not values["quiet"]:
        print("cohom: note: --num-layers is ignored: the layers are read from the model", file=sys.stderr)  # noqa: T201


def _dry_run(command: str, config: Any, as_json: bool) -> int:
    from cohomcli.jobs.plan import plan

    print_plan(plan(command, config), as_json)
    return 0


def print_plan(document: Mapping[str, Any], as_json: bool) -> None:
    """What --dry-run found, on stdout: one JSON document, or indented lines."""
    if as_json:
        print_json(dict(document))
        return
    from cohomcli.cli.show import show_plan

    show_plan(document)
