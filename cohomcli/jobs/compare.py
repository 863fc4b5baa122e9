"""The job behind `compare`: entries of earlier runs, of models analysed now, of checkpoints, side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config, dump_yaml
from cohomcli.errors import CohomError, InputRefused, UsageError
from cohomcli.gates import parse_gate
from cohomcli.jobs.analyze import Finished, Outcome, analyze, write_outcome
from cohomcli.jobs.checkpoints import Checkpoint, find_checkpoints, shared_tokenizer
from cohomcli.jobs.verdicts import check_targets
from cohomcli.progress import Progress
from cohomcli.results import Entry
from cohomcli.runs.activations import stored_activations
from cohomcli.runs.entries import load_run, save_entry, slug
from cohomcli.runs.folder import LATEST, RunFolder, published

if TYPE_CHECKING:
    from cohomcli.topology.comparison import Comparison
    from cohomcli.topology.drift import DriftReport, Subject

logger = logging.getLogger(__name__)
DRIFT_PATHS = ("topology.layers.", "comparison.drift", "comparison.map")


@dataclass(frozen=True)
class Source:
    """An entry and the run folder it comes from, where its activations may be."""

    entry: Entry
    artifacts: Path

    @property
    def key(self) -> tuple[str, str]:
        """What makes two entries the same subject."""
        return self.entry.model, self.entry.dataset


@dataclass(frozen=True)
class _Gathered:
    """Everything to compare: baselines first, then checkpoints, then what was named."""

    baselines: tuple[Source, ...]
    checkpoints: tuple[Source, ...]
    others: tuple[Source, ...]
    failures: tuple[CohomError, ...]

    @property
    def sources(self) -> list[Source]:
        return [*self.baselines, *self.checkpoints, *self.others]


def compare(references: Sequence[str], config: Config, argv: list[str], progress: Progress) -> Outcome:
    """Compare what `references` name: run folders, `latest`, or models; and the checkpoints that `config` names.

    A model is taken from the newest run under the output folder that holds it; if there is none it is analysed now.
    Without references every model's newest run under the output folder is compared.

    Raises:
        UsageError: fewer than two entries to compare, or an unknown measure.
        InputRefused: a run folder is damaged, or a model cannot be loaded.
    """
    check_targets(config.output)
    parent = Path(config.output.dir)
    gathered = _gather(references, config, argv, progress)
    sources = gathered.sources
    if len(sources) < 2:
        found = ", ".join(source.entry.model for source in sources) or "none"
        raise UsageError(
            f"compare needs at least two analysed models or data sets under {str(parent)!r}, found: {found}",
            "name them, e.g. cohom compare tiny-gpt tiny-bert",
        )
    entries = _distinct([source.entry for source in sources], len(gathered.baselines))
    comparison = _comparison(entries, gathered, config, progress)
    label = "-".join(entry.model for entry in entries[:3])
    run = RunFolder.create(parent, "compare", label, argv, config.output.name)
    with run:
        run.write("config.yaml", dump_yaml(config))
        for entry in entries:
            save_entry(run, entry)
        extra = {"topology": {"layers": _drift_document(comparison, comparison.drift)}} if comparison.drift else {}
        finished = Finished("compare", config, entries, gathered.failures, comparison, extra)
        return write_outcome(run, finished, progress)


def _gather(references: Sequence[str], config: Config, argv: list[str], progress: Progress) -> _Gathered:
    wanted = config.compare
    failures: list[CohomError] = []
    if wanted.baseline and not (references or wanted.checkpoints):
        raise UsageError("nothing to compare with the baseline", "name a run: cohom compare RUN --baseline RUN")
    if wanted.revisions and not wanted.checkpoints:
        raise UsageError("--revisions need the model they belong to", "name it with --checkpoints MODEL")
    baselines = _sources(wanted.baseline, config, argv, progress) if wanted.baseline else []
    checkpoints = _checkpoints(config, argv, failures, progress) if wanted.checkpoints else []
    others = [source for reference in references for source in _sources(reference, config, argv, progress)]
    if not (references or wanted.checkpoints):
        others = newest_sources(Path(config.output.dir))
    return _Gathered(tuple(baselines), tuple(checkpoints), tuple(others), tuple(failures))


def _sources(reference: str, config: Config, argv: list[str], progress: Progress) -> list[Source]:
    parent = Path(config.output.dir)
    for folder in (Path(reference), parent / reference):
        if (folder / "results.json").is_file() or (reference == LATEST and folder.is_symlink()):
            return [source for source in _stored(folder) if not source.entry.error]
    known = [source for source in newest_sources(parent) if source.entry.model == reference]
    if known:
        logger.warning("%s: taken from its newest run under %s", reference, parent)
        return known
    logger.warning("%s: no run found under %s, analysing it now", reference, parent)
    return _analysed(_alone(config, [reference]), argv, progress)[0]


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


def _checkpoints(config: Config, argv: list[str], failures: list[CohomError], progress: Progress) -> list[Source]:
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


def newest_sources(parent: Path) -> list[Source]:
    """The newest finished entry of every (model, data set) under `parent`, in the order of first appearance."""
    newest: dict[tuple[str, str], Source] = {}
    for folder in published(parent):
        if folder.name.split("-")[1:2] == ["compare"]:
            continue
        for source in _stored(folder):
            if not source.entry.error:
                newest[source.key] = source
    return list(newest.values())


def _distinct(entries: Sequence[Entry], n_baselines: int) -> list[Entry]:
    """Give entries of the same model and data set (two runs of one model) names that tell them apart."""
    later = {(entry.model, entry.dataset) for entry in entries[n_baselines:]}
    seen: dict[tuple[str, str], int] = {}
    result = []
    for at, entry in enumerate(entries):
        key = (entry.model, entry.dataset)
        if at < n_baselines and key in later:
            result.append(replace(entry, model=f"{entry.model} (baseline)"))
            continue
        seen[key] = seen.get(key, 0) + 1
        result.append(entry if seen[key] == 1 else replace(entry, model=f"{entry.model} (run {seen[key]})"))
    return result


def _comparison(entries: Sequence[Entry], gathered: _Gathered, config: Config, progress: Progress) -> Comparison:
    """The comparison of the entries' figures, with drift and distances between their representations."""
    from cohomcli.models.memory import available_bytes
    from cohomcli.topology.comparison import compare as compare_entries
    from cohomcli.topology.drift import check_memory, choose_measure, drift_report, with_steps
    from cohomcli.topology.maps import model_map

    comparison = compare_entries(entries, config.compute.seed)
    good = [at for at, entry in enumerate(entries) if entry.topology]
    if len(good) < 2:
        return comparison
    subjects = [_subject(row, gathered.sources[at]) for row, at in enumerate(good)]
    complete = all(subject.activations is not None for subject in subjects)
    measure = choose_measure(config.compare.measure, complete)
    _refuse_weaker(measure, config)
    check_memory(subjects, measure, available_bytes())
    baselines = [row for row, at in enumerate(good) if at < len(gathered.baselines)]
    drift = drift_report(subjects, baselines, _pairs(good, baselines, gathered), measure, progress)
    if gathered.checkpoints:
        last = len(gathered.baselines) + len(gathered.checkpoints)
        ordered = [row for row, at in enumerate(good) if len(gathered.baselines) <= at < last]
        drift = with_steps(drift, [subjects[row] for row in ordered])
    flat = model_map(subjects, measure, config.compute.seed, progress)
    return replace(comparison, drift=drift, map=flat)


def _subject(row: int, source: Source) -> Subject:
    from cohomcli.topology.drift import Subject

    entry = source.entry
    assert entry.topology is not None
    texts = f"{entry.sample.sha256}/{len(entry.sample.texts)}" if entry.sample else entry.dataset
    activations = stored_activations(source.artifacts, entry.activations_sha256)
    if activations is not None:
        activations.check()
    return Subject(row, f"{texts}/{entry.pooling}", entry.topology.layers, activations)


def _pairs(good: Sequence[int], baselines: Sequence[int], gathered: _Gathered) -> list[tuple[int, int | None]]:
    """Which row is measured from which: the only baseline, or that of the same model and data set, if there is one."""
    keys = [gathered.sources[at].key for at in good]
    pairs: list[tuple[int, int | None]] = []
    if not baselines:
        return pairs
    for row in range(len(good)):
        if row not in baselines:
            alike = [other for other in baselines if len(baselines) == 1 or keys[other] == keys[row]]
            pairs.append((row, alike[0] if alike else None))
    return pairs


def _refuse_weaker(measure: str, config: Config) -> None:
    """Let no gate that was set for activations be judged on diagrams, which differ less."""
    from cohomcli.topology.drift import DIAGRAMS

    if measure != DIAGRAMS or config.compare.measure == DIAGRAMS:
        return
    gates = [text for text in config.fail_on if parse_gate(text).path.startswith(DRIFT_PATHS)]
    if gates:
        raise InputRefused(
            f"the gate {gates[0]!r} needs activations, and a run to be compared keeps none",
            "analyse it again with --store-activations always, or accept --measure diagrams, which sees less",
        )
    logger.warning("a run keeps no activations: drift is measured between diagrams, which sees less")


def _drift_document(comparison: Comparison, drift: DriftReport) -> dict[str, Any]:
    """`topology.layers` of the results: the figures that gates ask for."""
    known = [model for model in drift.models if model.max_drift is not None]
    worst = max(known, key=lambda model: model.max_drift or 0.0, default=None)
    return {
        "measure": drift.measure,
        "measured_on": drift.measured_on,
        "baselines": [comparison.rows[row].model for row in drift.baselines],
        "max_drift": drift.max_drift,
        "mean_drift": drift.mean_drift,
        "max_step": drift.max_step,
        "worst_model": comparison.rows[worst.row].model if worst else None,
        "worst_layer": worst.worst_layer if worst else None,
        "reason": drift.reason,
    }
