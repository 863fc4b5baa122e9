"""The job behind `compare`: entries of earlier runs, and of models analysed now, side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from cohomcli.config import Config, dump_yaml
from cohomcli.errors import UsageError
from cohomcli.jobs.analyze import Outcome, analyze, write_outcome
from cohomcli.progress import Progress
from cohomcli.results import Entry
from cohomcli.runs.entries import load_run, save_entry
from cohomcli.runs.folder import LATEST, RunFolder, published

logger = logging.getLogger(__name__)


def compare(references: Sequence[str], config: Config, argv: list[str], progress: Progress) -> Outcome:
    """Compare what `references` name: run folders, `latest`, or models.

    A model is taken from the newest run under the output folder that holds it; if there is none it is analysed now.
    Without references every model's newest run under the output folder is compared.

    Raises:
        UsageError: fewer than two entries to compare.
        InputRefused: a run folder is damaged, or a model cannot be loaded.
    """
    parent = Path(config.output.dir)
    entries = _distinct([entry for reference in references for entry in _entries(reference, config, argv, progress)])
    if not references:
        entries = newest_entries(parent)
    if len(entries) < 2:
        found = ", ".join(entry.model for entry in entries) or "none"
        raise UsageError(
            f"compare needs at least two analysed models or data sets under {str(parent)!r}, found: {found}",
            "name them, e.g. cohom compare tiny-gpt tiny-bert",
        )
    run = RunFolder.create(parent, "compare", "-".join(entry.model for entry in entries[:3]), argv, config.output.name)
    with run:
        run.write("config.yaml", dump_yaml(config))
        for entry in entries:
            save_entry(run, entry)
        return write_outcome(run, "compare", config, entries, (), progress)


def _entries(reference: str, config: Config, argv: list[str], progress: Progress) -> list[Entry]:
    parent = Path(config.output.dir)
    for folder in (Path(reference), parent / reference):
        if (folder / "results.json").is_file() or (reference == LATEST and folder.is_symlink()):
            return [entry for entry in load_run(folder).entries if not entry.error]
    known = [entry for entry in newest_entries(parent) if entry.model == reference]
    if known:
        logger.warning("%s: taken from its newest run under %s", reference, parent)
        return known
    logger.warning("%s: no run found under %s, analysing it now", reference, parent)
    unnamed = config.output.model_copy(update={"name": None})
    shape_alone = config.precision.model_copy(update={"enabled": False})
    alone = config.model_copy(update={"models": [reference], "output": unnamed, "precision": shape_alone})
    return list(analyze("run", alone, argv, progress).entries)


def newest_entries(parent: Path) -> list[Entry]:
    """The newest finished entry of every (model, data set) under `parent`, in the order of first appearance."""
    newest: dict[tuple[str, str], Entry] = {}
    for folder in published(parent):
        if folder.name.split("-")[1:2] == ["compare"]:
            continue
        for entry in load_run(folder).entries:
            if not entry.error:
                newest[entry.model, entry.dataset] = entry
    return list(newest.values())


def _distinct(entries: Sequence[Entry]) -> list[Entry]:
    """Give entries of the same model and data set (two runs of one model) names that tell them apart."""
    seen: dict[tuple[str, str], int] = {}
    result = []
    for entry in entries:
        key = (entry.model, entry.dataset)
        seen[key] = seen.get(key, 0) + 1
        fresh = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
        result.append(entry if seen[key] == 1 else Entry(**fresh | {"model": f"{entry.model} (run {seen[key]})"}))
    return result
