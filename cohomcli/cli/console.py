"""Talking to the user: results on stdout; progress bars, logs and warnings on stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cohomcli.progress import Progress, silent

if TYPE_CHECKING:
    from rich.console import Console

QUIET_STEP_SECONDS = 1.0
_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


def stdout_console() -> Console:
    """A console for results; off a terminal it never truncates at 80 columns."""
    from rich.console import Console

    return Console(soft_wrap=True) if sys.stdout.isatty() else Console(width=200, soft_wrap=True, highlight=False)


def setup_logging(quiet: bool, verbose: bool) -> None:
    """Send our log to stderr as single lines: warnings by default, all with -v, nothing with --quiet.

    The hub's libraries draw their own bars, unless their variables say otherwise before they are first imported: none
    when quiet, and none into logs and pipes unless the user set the variables.
    """
    for variable in _BARS:
        if quiet:
            os.environ[variable] = "1"
        elif not sys.stderr.isatty():
            os.environ.setdefault(variable, "1")
    logger = logging.getLogger("cohomcli")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    if quiet:
        logger.addHandler(logging.NullHandler())  # without any handler Python prints warnings by itself
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setLevel(logging.DEBUG if verbose else logging.WARNING)
        handler.setFormatter(logging.Formatter("cohom: %(levelname)s: %(message)s"))
        logger.addHandler(handler)


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """A progress callback: bars on a terminal, one line per finished step elsewhere, nothing when quiet."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        yield from _bars()
    else:
        yield _Lines()


def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    name = TextColumn("{task.description:<28}")
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=True)) as bars:

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(escape(step), total=total)
            bars.update(tasks[step], completed=done, total=total)
            if done >= total:  # the next model's step of this name gets a bar and a clock of its own
                bars.stop_task(tasks.pop(step))

        yield report


class _Lines:
    """Progress where there is no terminal: a line when a step that took over a second is finished."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        begun = self.started.setdefault(step, time.monotonic())
        if done < total:
            return
        del self.started[step]  # the next model's step of this name has a clock of its own
        seconds = time.monotonic() - begun
        if seconds >= QUIET_STEP_SECONDS:
            print(f"cohom: {step}: {total} done in {seconds:.1f} s", file=sys.stderr)  # noqa: T201


def print_json(document: dict[str, Any]) -> None:
    """One strict JSON document on stdout."""
    from cohomcli.runs.files import to_json

    sys.stdout.write(to_json(document))
