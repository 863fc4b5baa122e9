"""The plan of a precision analysis written for other tools, one folder of the run's artifacts per `--export`."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config
from cohomcli.errors import CohomError, UsageError
from cohomcli.progress import Progress
from cohomcli.results import Entry
from cohomcli.runs.entries import slug
from cohomcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from cohomcli.jobs.precision import PrecisionPart
    from cohomcli.precision.exports.base import Source
    from cohomcli.precision.result import Export

logger = logging.getLogger(__name__)


def check_exports(config: Config) -> None:
    """Refuse exports that cannot be written, before a model is loaded.

    Raises:
        UsageError: an unknown export, or one whose packages are not installed.
    """
    from cohomcli.precision.exports import EXPORTERS, EXTRA, NEEDS
    from cohomcli.registry import did_you_mean

    for name in config.precision.export:
        if name not in EXPORTERS:
            raise UsageError(f"unknown export {name!r}", did_you_mean(name, EXPORTERS))
        if missing := [package for package in NEEDS.get(name, ()) if find_spec(package) is None]:
            raise UsageError(f"the export {name!r} needs {', '.join(missing)}", f"install {EXTRA}")


def with_exports(
    run: RunFolder, entry: Entry, loaded: Any, part: PrecisionPart, config: Config, progress: Progress
) -> PrecisionPart:
    """`part` with the exports that were asked for in `artifacts/<entry>/exports/<name>/`.

    An export that the model or the plan does not allow is listed with the reason; the analysis stands all the same.

    Raises:
        UsageError: `--export` for weights without a program.
    """
    wanted = config.precision.export
    if not wanted:
        return part
    from cohomcli.precision.exports.base import Source
    from cohomcli.precision.planfile import plan_file
    from cohomcli.precision.result import PrecisionResult

    if part.analysis is None:
        raise UsageError("--export needs a model's program, and only its weights are known")
    assert isinstance(part.result, PrecisionResult)
    analysis, precision = part.analysis, config.precision
    planned = plan_file(analysis.captured, analysis.plan, precision.epsilon, precision.norm)
    source = Source(loaded.model, analysis.captured, analysis.plan, planned, loaded.tokenizer)
    relative = f"artifacts/{slug(entry.model, entry.dataset)}/exports"
    rows = []
    for n, name in enumerate(wanted):
        progress("export", n, len(wanted))
        rows.append(_export(name, source, run.path(f"{relative}/{name}/x").parent, f"{relative}/{name}"))
    progress("export", len(wanted), len(wanted))
    return replace(part, result=replace(part.result, exports=tuple(rows)))


def _export(name: str, source: Source, folder: Path, relative: str) -> Export:
    """One export as a row of results; its folder holds all of it or is not there."""
    from cohomcli.precision.exports import EXPORTERS
    from cohomcli.precision.result import Export

    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted while it wrote
    folder.mkdir(parents=True)
    try:
        done = EXPORTERS.get(name)(source, folder)
    except CohomError as error:
        logger.warning("export %s not written: %s", name, error)
        shutil.rmtree(folder)
        return Export(name, (), "", f"not written: {error}")
    return Export(name, tuple(f"{relative}/{file}" for file in done.files), done.keeps, done.omits, done.check)
