"""Where the entries of a comparison come from: run folders, newest runs, models and checkpoints analysed on the way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cohomcli.config import Config
from cohomcli.errors import CohomError, InputRefused
from cohomcli.jobs.analyze import analyze
from cohomcli.jobs.checkpoints import Checkpoint, find_checkpoints, is_collection, shared_tokenizer
from cohomcli.progress import Progress
from cohomcli.results import Entry
from cohomcli.runs.entries import load_run, slug
from cohomcli.runs.folder import LATEST, published

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """An entry and the run folder it comes from, where its activations may be."""

    entry: Entry
    artifacts: Path

    @property
    def key(self) -> tuple[str, str]:
        """What makes two entries the same subject."""
        return self.entry.model, self.entry.dataset


def sources_of(reference: str, config: Config, argv: list[str], progress: Progress) -> list[Source]:
    """What `reference` names: entries of a run folder, or of a model, from its newest run or analysed now."""
    parent = Path(config.output.dir)
    for folder in (Path(reference), parent / reference):
        if (folder / "results.json").is_file() or (reference == LATEST and folder.is_symlink()):
            return _comparable(folder)
    known = [source for source in newest_sources(parent) if source.entry.model == reference]
    if known:
        logger.warning("%s: taken from its newest run under %s", reference, parent)
        return known
    logger.warning("%s: no run found under %s, analysing it now", reference, parent)
    return _analysed(_alone(config, [reference]), argv, progress)[0]


def _comparable(folder: Path) -> list[Source]:
    sound = [source for source in _stored(folder) if not source.entry.error]
    if sound and all(source.entry.topology is None for source in sound):
        hint = "give a run of `cohom run` or `cohom tda`, or the model/ folder inside this one"
        raise InputRefused(f"run {str(folder)!r} holds no topology to compare", hint)
    return sound


def _stored(folder: Path) -> list[Source]:
    entries = load_run(folder).entries
    return [Source(entry, folder / "artifacts" / slug(entry.model, entry.dataset)) for entry in entries]


def _alone(config: Config, models: Sequence[str]) -> Config:
    """The configuration of an analysis made on the way: no gates, no precision, no files but its own run folder.

    Its figures are drawn in the comparison's report, once.
    """
    targets = {"name": None, "junit": None, "sarif": None, "markdown": None, "github_summary": False}
    targets |= {"plots": False, "html": False}
    return config.model_copy(
        update={
            "models": list(models),
            "output": config.output.model_copy(update=targets),
            "precision": config.precision.model_copy(update={"enabled": False}),
            "fail_on": [],
        }
    )


def _analysed(config: Config, argv: list[str], progress: Progress) -> tuple[list[Source], tuple[CohomError, ...]]:
    outcome = analyze("run", config, argv, progress)
    folder = outcome.folder / "artifacts"
    return [Source(e, folder / slug(e.model, e.dataset)) for e in outcome.entries], outcome.failures


def checkpoint_sources(config: Config, argv: list[str], failures: list[CohomError], progress: Progress) -> list[Source]:
    """Every checkpoint analysed on the same texts, one run folder for all of a folder, one for each revision."""
    place = config.compare.checkpoints or ""
    found = find_checkpoints(place, config.compare.revisions)
    if not config.compare.revisions:
        tokenizer = config.loading.tokenizer or shared_tokenizer(place, found)
        loading = config.loading.model_copy(update={"tokenizer": tokenizer})
        one_run = _alone(config, [one.reference for one in found]).model_copy(update={"loading": loading})
        sources, failed = _analysed(one_run, argv, progress)
        failures += failed
        return sources
    return [source for one in found for source in _revision(one, config, argv, progress)]


def _revision(one: Checkpoint, config: Config, argv: list[str], progress: Progress) -> list[Source]:
    loading = config.loading.model_copy(update={"revision": one.revision})
    alone = _alone(config, [one.reference]).model_copy(update={"loading": loading})
    sources, _ = _analysed(alone, argv, progress)
    return [replace(source, entry=replace(source.entry, model=one.label)) for source in sources]


def population_sources(config: Config, argv: list[str], progress: Progress) -> list[Source]:
    """The members of `compare.population`: run folders, models, or folders of models whose names end with a number.

    Members analysed on the way get their diagrams only: nothing else of them is looked at.
    """
    bare = config.model_copy(
        update={
            "metrics": config.metrics.model_copy(update={"perplexity": False}),
            "evidence": config.evidence.model_copy(update={"null_model": "none", "bands": False}),
            "topology": config.topology.model_copy(
                update={"geometry": False, "track_neighbours": 0, "similarity": [], "attention_texts": 0}
            ),
        }
    )
    found: list[Source] = []
    for reference in config.compare.population:
        if is_collection(reference):
            members = find_checkpoints(reference)
            tokenizer = config.loading.tokenizer or shared_tokenizer(reference, members)
            loading = config.loading.model_copy(update={"tokenizer": tokenizer})
            alone = _alone(bare, [one.reference for one in members]).model_copy(update={"loading": loading})
            found += _analysed(alone, argv, progress)[0]
        else:
            found += sources_of(reference, bare, argv, progress)
    return [source for source in found if source.entry.topology is not None]


def newest_sources(parent: Path) -> list[Source]:
    """The newest entry with topology of every (model, data set) under `parent`, in the order of first appearance."""
    newest: dict[tuple[str, str], Source] = {}
    for folder in published(parent):
        if folder.name.split("-")[1:2] == ["compare"]:
            continue
        for source in _stored(folder):
            if not source.entry.error and source.entry.topology is not None:  # a training or pruning has none
                newest[source.key] = source
    return list(newest.values())
