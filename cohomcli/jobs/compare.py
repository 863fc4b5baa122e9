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
from cohomcli.jobs.analyze import Finished, Outcome, write_outcome
from cohomcli.jobs.sources import Source, checkpoint_sources, newest_sources, population_sources, sources_of
from cohomcli.jobs.verdicts import check_targets
from cohomcli.progress import Progress
from cohomcli.results import Entry
from cohomcli.runs.activations import stored_activations
from cohomcli.runs.entries import save_entry, with_proofs
from cohomcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from cohomcli.topology.comparison import Comparison
    from cohomcli.topology.crosslayers import CrossLayers
    from cohomcli.topology.drift import DriftReport, Subject
    from cohomcli.topology.exchanges import PermutationReport

logger = logging.getLogger(__name__)
DRIFT_PATHS = ("topology.layers.", "comparison.drift", "comparison.map")


@dataclass(frozen=True)
class _Gathered:
    """Everything to compare: baselines first, then checkpoints, then what was named; `population` stands beside it."""

    baselines: tuple[Source, ...]
    checkpoints: tuple[Source, ...]
    others: tuple[Source, ...]
    population: tuple[Source, ...]
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
    _check_measure(config.compare.cross)
    parent = Path(config.output.dir)
    gathered = _gather(references, config, argv, progress)
    sources = gathered.sources
    if len(sources) + bool(gathered.population) < 2:
        found = ", ".join(source.entry.model for source in sources) or "none"
        raise UsageError(
            f"compare needs at least two analysed models or data sets under {str(parent)!r}, found: {found}",
            "name them, e.g. cohom compare tiny-gpt tiny-bert",
        )
    entries = _distinct([source.entry for source in sources], len(gathered.baselines))
    comparison = _comparison(entries, gathered, config, progress)
    label = "-".join(entry.model for entry in entries[:3])
    run = RunFolder.create(parent, "compare", label, argv, config.output.name, dump_yaml(config))
    with run:
        pairs = zip(entries, sources, strict=True)
        entries = [with_proofs(run, entry, source.artifacts) for entry, source in pairs]
        for entry in entries:
            save_entry(run, entry)
        finished = Finished("compare", config, entries, gathered.failures, comparison, _extra(comparison))
        return write_outcome(run, finished, progress)


def _gather(references: Sequence[str], config: Config, argv: list[str], progress: Progress) -> _Gathered:
    wanted = config.compare
    failures: list[CohomError] = []
    if wanted.baseline and not (references or wanted.checkpoints):
        raise UsageError("nothing to compare with the baseline", "name a run: cohom compare RUN --baseline RUN")
    if wanted.revisions and not wanted.checkpoints:
        raise UsageError("--revisions need the model they belong to", "name it with --checkpoints MODEL")
    baselines = sources_of(wanted.baseline, config, argv, progress) if wanted.baseline else []
    checkpoints = checkpoint_sources(config, argv, failures, progress) if wanted.checkpoints else []
    others = [source for reference in references for source in sources_of(reference, config, argv, progress)]
    if not (references or wanted.checkpoints):
        others = newest_sources(Path(config.output.dir))
    population = population_sources(config, argv, progress) if wanted.population else []
    return _Gathered(tuple(baselines), tuple(checkpoints), tuple(others), tuple(population), tuple(failures))


def _check_measure(name: str) -> None:
    """Refuse an unknown measure for layers by layers before anything is analysed."""
    from cohomcli.topology.drift import DIAGRAMS
    from cohomcli.topology.measures import MEASURES

    if name not in ("auto", "none", DIAGRAMS):
        MEASURES.get(name)


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
    """The comparison of the entries' figures, with what is measured between their representations."""
    from cohomcli.models.memory import available_bytes
    from cohomcli.topology.comparison import compare as compare_entries
    from cohomcli.topology.drift import check_memory, choose_measure, drift_report, with_steps
    from cohomcli.topology.maps import model_map

    comparison = compare_entries(entries, config.compute.seed)
    good = [at for at, entry in enumerate(entries) if entry.topology]
    subjects = [_subject(row, gathered.sources[at]) for row, at in enumerate(good)]
    if len(good) < 2:
        return replace(comparison, permutations=_permutations(subjects, [], gathered, config, progress))
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
    pairs = list(dict.fromkeys((model.row, model.against) for model in (*drift.models, *drift.steps)))
    return replace(
        comparison,
        drift=drift,
        map=model_map(subjects, measure, config.compute.seed, progress),
        permutations=_permutations(subjects, pairs, gathered, config, progress),
        cross=_cross(subjects, drift, config, progress),
    )


def _permutations(
    subjects: Sequence[Subject],
    pairs: Sequence[tuple[int, int | None]],
    gathered: _Gathered,
    config: Config,
    progress: Progress,
) -> PermutationReport | None:
    """The permutation tests that were asked for: `pairs` on their texts, every other row among the population."""
    from cohomcli.topology.exchanges import Population, permutation_report
    from cohomcli.topology.permutation import ExchangeOptions

    wanted = config.compare
    if not (wanted.permutations or gathered.population):
        return None
    options = ExchangeOptions(
        pca=config.topology.pca,
        metric=config.topology.metric,
        engine=config.topology.engine,
        maxdim=config.topology.maxdim,
        arrangements=wanted.permutations or ExchangeOptions.arrangements,
        seed=config.compute.seed,
    )
    population = Population(
        tuple(source.entry.model for source in gathered.population),
        tuple(_subject(at, source) for at, source in enumerate(gathered.population)),
    )
    tested = [subject.row for subject in subjects if subject.row >= len(gathered.baselines)]
    return permutation_report(subjects, pairs if wanted.permutations else (), tested, population, options, progress)


def _cross(
    subjects: Sequence[Subject], drift: DriftReport, config: Config, progress: Progress
) -> tuple[CrossLayers, ...]:
    """Layers by layers for every analysis and its baseline."""
    from cohomcli.topology.crosslayers import cross_layers

    wanted = config.compare.cross
    if wanted == "none":
        return ()
    measure = drift.measure if wanted == "auto" else wanted
    return cross_layers(subjects, [(model.row, model.against) for model in drift.models], measure, progress)


def _subject(row: int, source: Source) -> Subject:
    from cohomcli.topology.drift import Subject

    entry = source.entry
    assert entry.topology is not None
    texts = f"{entry.sample.sha256}/{len(entry.sample.texts)}" if entry.sample else entry.dataset
    weights = entry.info.weights_sha256 if entry.info else ""
    activations = stored_activations(source.artifacts, entry.activations_sha256)
    if activations is not None:
        activations.check()
    return Subject(row, f"{texts}/{entry.pooling}", entry.topology.layers, activations, texts, weights)


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


def _extra(comparison: Comparison) -> dict[str, Any]:
    """`topology` of the results: the figures that gates ask for."""
    if comparison.drift is None and comparison.permutations is None:
        return {}
    layers = {"layers": _drift_document(comparison, comparison.drift)} if comparison.drift else {}
    return {"topology": layers | {"permutations": _permutation_document(comparison.permutations)}}


def _permutation_document(found: PermutationReport | None) -> dict[str, Any]:
    """The smallest corrected p-values; null with the reason where there is none, so that a gate on it trips."""
    if found is None:
        reason = "no permutation test was asked for: --permutations or --population"
        return {kind: {"p_value": None, "reason": reason} for kind in ("texts", "population")}
    return {
        "texts": {"p_value": found.p_texts, "n_tests": len(found.texts), "reason": found.reason_texts},
        "population": {
            "p_value": found.p_population,
            "n_tests": len(found.population),
            "n_members": len(found.members),
            "reason": found.reason_population,
        },
    }


def _drift_document(comparison: Comparison, drift: DriftReport) -> dict[str, Any]:
    """`topology.layers` of the results."""
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
