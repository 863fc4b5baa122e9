"""The files for pipelines: JUnit, SARIF, markdown, and the summary of a GitHub step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cohomcli import __version__
from cohomcli.config.running import OutputConfig
from cohomcli.errors import UsageError
from cohomcli.runs.files import write_atomic, writing

if TYPE_CHECKING:
    from cohomcli.jobs.analyze import Outcome

SUMMARY = "GITHUB_STEP_SUMMARY"


def check_targets(config: OutputConfig) -> None:
    """Refuse, before anything is computed, what could not be written at the end.

    Raises:
        UsageError: `github_summary` outside a GitHub step, or a target that is a folder or in one that is read-only.
    """
    if config.github_summary and not os.environ.get(SUMMARY):
        raise UsageError(f"--github-summary needs the variable {SUMMARY}", "GitHub sets it in a step; else --markdown")
    for name in (config.junit, config.sarif, config.markdown):
        if name and Path(name).is_dir():
            raise UsageError(f"cannot write {name!r}: it is a folder", "name a file")
        if name and Path(name).parent.is_dir() and not os.access(Path(name).parent, os.W_OK):
            raise UsageError(f"cannot write {name!r}: its folder is read-only", "name a file elsewhere")


def write_verdict(outcome: Outcome, config: OutputConfig) -> None:
    """Write the files that were asked for.

    Raises:
        UsageError: a file cannot be written.
    """
    if not (config.junit or config.sarif or config.markdown or config.github_summary):
        return
    check_targets(config)
    from cohomcli.report import github, junit, sarif
    from cohomcli.report.verdict import Verdict

    command = str(outcome.document["command"])
    verdict = Verdict(command, __version__, outcome.entries, outcome.gates, outcome.comparison)
    targets = ((config.junit, junit.render), (config.sarif, sarif.render), (config.markdown, github.render))
    for target, render in targets:
        if target:
            write_atomic(Path(target), render(verdict).encode("utf-8", errors="replace"))
    if config.github_summary:
        summary = Path(os.environ[SUMMARY])
        with writing(summary), summary.open("a", encoding="utf-8", errors="replace") as stream:
            stream.write(github.render(verdict))
