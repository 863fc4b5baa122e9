"""The job behind `inspect`: what is this model, run folder or data file?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cohomcli.config import resolve as resolve_config
from cohomcli.data.spec import DatasetSpec
from cohomcli.errors import UsageError
from cohomcli.jobs.plan import describe_any_model
from cohomcli.progress import Progress, silent
from cohomcli.runs.entries import load_run
from cohomcli.runs.files import read_json

_TEXT_SUFFIXES = {".txt", ".text", ".md", ".jsonl", ".csv", ".tsv"}


def inspect(
    target: str, flags: Mapping[str, Any], exactness: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Facts about `target`, found without running it; `flags` are loading options by config key.

    With `exactness` the model is run on texts and its pairs of maps are measured.

    Raises:
        InputRefused: it is none of the things we know, or damaged.
        UsageError: `exactness` of something that is no model.
    """
    path = Path(target)
    is_run = (path / "results.json").is_file()
    is_text = path.suffix.lower() in _TEXT_SUFFIXES or _is_text_folder(path)
    if exactness and (is_run or is_text):
        raise UsageError(f"{target} is no model", "--exactness is for models")
    if is_run:
        return {"schema": "cohom.inspection/1", "command": "inspect", "kind": "run"} | _run_facts(path)
    if is_text:
        return {"schema": "cohom.inspection/1", "command": "inspect", "kind": "texts"} | _text_facts(target)
    config = resolve_config(flags=flags)
    facts = describe_any_model(target, config, config.data.samples)
    if exactness:
        from cohomcli.jobs.exactness import exactness as measured

        facts["exactness"] = measured(target, config, progress)
    return {"schema": "cohom.inspection/1", "command": "inspect", "kind": "model"} | facts


def _is_text_folder(path: Path) -> bool:
    return path.is_dir() and not (path / "config.json").exists() and any(path.glob("*.txt"))


def _run_facts(path: Path) -> dict[str, Any]:
    stored = load_run(path)
    manifest = read_json(path / "manifest.json")
    return {
        "run": str(path),
        "of": stored.results["command"],
        "status": manifest["status"],
        "started": manifest["started"],
        "argv": manifest["argv"],
        "entries": [
            {
                "model": entry.model,
                "dataset": entry.dataset,
                "status": entry.status,
                "n_layers": len(entry.topology.layers) if entry.topology else 0,
                "n_texts": len(entry.sample.texts) if entry.sample else 0,
            }
            for entry in stored.entries
        ],
    }


def _text_facts(target: str) -> dict[str, Any]:
    from cohomcli.data.draw import Pool
    from cohomcli.data.sources import open_source

    source = open_source(DatasetSpec(target))
    pool = Pool(source)
    pool.draw(1, 0)
    return {
        "dataset": source.name,
        "source": source.source,
        "unit": source.unit,
        "field": source.field,
        "n_texts": pool.distinct,
        "n_duplicate": pool.duplicate,
        "n_empty": pool.empty,
    }
