"""The job behind `run`, `tda` and `analyze-precision`: every model on every data set, one run folder, one report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli import __version__
from cohomcli.config import Config, dump_yaml, resolve
from cohomcli.data.spec import DatasetSpec, TextSample
from cohomcli.errors import EXIT_GATE, EXIT_INCOMPLETE, EXIT_OK, EXIT_USAGE, CohomError
from cohomcli.gates import GateOutcome, check_gates, parse_gate
from cohomcli.jobs.backend import check_backend
from cohomcli.jobs.compute import prepare
from cohomcli.jobs.entry import Task, analyse_entry, load_options
from cohomcli.jobs.verdicts import check_targets, write_verdict
from cohomcli.names import safe_name
from cohomcli.progress import Progress
from cohomcli.results import Entry
from cohomcli.runs.entries import keep_activations, load_entry, results_document, save_entry, slug
from cohomcli.runs.files import to_json, writing
from cohomcli.runs.folder import RunFolder
from cohomcli.runs.vectors import keep_vectors

if TYPE_CHECKING:
    from cohomcli.topology.comparison import Comparison

logger = logging.getLogger(__name__)
PRECISION_COMMAND = "analyze-precision"


@dataclass(frozen=True)
class Outcome:
    """What a command gives back to the command line."""

    document: dict[str, Any]
    entries: tuple[Entry, ...]
    folder: Path
    exit_code: int = EXIT_OK
    comparison: Comparison | None = None
    gates: tuple[GateOutcome, ...] = ()
    failures: tuple[CohomError, ...] = ()


class _Models:
    """Loads the models one after another; the one in use is kept, so that several data sets share it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._current: tuple[str, bool, Any] = ("", False, None)

    def get(self, reference: str, progress: Progress, anything: bool = False) -> Any:
        """The `LoadedModel` of a language model with its tokenizer; with `anything` what `load_any` gives, which may
        be any program, or `LoadedWeights` without one.
        """
        from cohomcli.models.load import load, load_any
        from cohomcli.models.resolve import resolve as resolve_model

        if self._current[:2] != (reference, anything):
            self._current = ("", False, None)  # free the previous model before the next is read
            step = f"load {Path(reference).name}"
            progress(step, 0, 1)
            source, options = resolve_model(reference), load_options(self.config)
            self._current = (reference, anything, (load_any if anything else load)(source, options))
            progress(step, 1, 1)
        return self._current[2]


def analyze(command: str, config: Config, argv: list[str], progress: Progress) -> Outcome:
    """Analyse every model on every data set of `config` into a new run folder.

    With several pairs a failing one does not stop the others: its entry says why, and the exit code is its error's.

    Raises:
        CohomError: the only pair failed, or all did; no run folder is left then.
    """
    check_wishes(command, config)
    parent = Path(config.output.dir)
    label = "-".join(task.model for task in tasks(config)[:3])
    run = RunFolder.create(parent, command, label, argv, config.output.name, dump_yaml(config))
    return _fill(run, command, config, progress)


def check_wishes(command: str, config: Config) -> None:
    """Refuse what is wrong in the configuration before a model is loaded or a folder made.

    Raises:
        CohomError: a precision option, a table it names, or a measure.
    """
    from cohomcli.jobs.export import check_exports
    from cohomcli.jobs.precision import precision_options
    from cohomcli.jobs.refute import check_prover

    check_targets(config.output)
    check_backend(config.compute)
    if config.topology.similarity:
        from cohomcli.topology.representation import check_measures

        check_measures(config.topology.similarity)
    if _plans(command, config):
        precision_options(config)
        check_prover(config)
        check_exports(config)


def _plans(command: str, config: Config) -> bool:
    return command == PRECISION_COMMAND or (command == "run" and config.precision.enabled)


def resume(command: str, parent: Path, name: str, argv: list[str], progress: Progress) -> Outcome:
    """Go on with an interrupted run from its finished stages, under the configuration it was started with."""
    run = RunFolder.reopen(parent, name, argv, command)
    return _fill(run, command, resolve(run.stage / "config.yaml", environ={}), progress)


def tasks(config: Config) -> list[Task]:
    """Every model with every data set, under names that are unique within the run."""
    models = _unique([_model_label(reference) for reference in config.models])
    datasets = _unique([_dataset_label(reference) for reference in config.datasets])
    return [
        Task(reference, dataset_reference, model, dataset)
        for reference, model in zip(config.models, models, strict=True)
        for dataset_reference, dataset in zip(config.datasets, datasets, strict=True)
    ]


def _model_label(reference: str) -> str:
    from cohomcli.models.resolve import resolve as resolve_model

    try:
        return resolve_model(reference).name
    except CohomError:
        # The task itself will report what is wrong with the reference; until then it needs a name.
        return safe_name(Path(reference).name)


def _dataset_label(reference: str) -> str:
    path = Path(reference)
    return safe_name(path.stem if path.exists() else reference)


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return result


def _fill(run: RunFolder, command: str, config: Config, progress: Progress) -> Outcome:
    with run:
        workers = prepare(config.compute)
        resources = _Resources(command, config, workers, _Models(config), _Samples(config))
        entries: list[Entry] = []
        failures: list[CohomError] = []
        wanted = tasks(config)
        for task in wanted:
            try:
                entries.append(_one(run, task, resources, progress))
            except CohomError as error:
                if len(wanted) == 1:
                    raise
                logger.error("%s: %s", task.stage, error)
                failures.append(error)
                entries.append(Entry(task.model, task.dataset, error=str(error)))
        if len(failures) == len(wanted):
            raise failures[0]
        return write_outcome(run, Finished(command, config, entries, failures), progress)


@dataclass(frozen=True)
class _Resources:
    """What all entries of a job share."""

    command: str
    config: Config
    workers: int
    models: _Models
    samples: _Samples

    @property
    def topology(self) -> bool:
        return self.command != PRECISION_COMMAND

    @property
    def precision(self) -> bool:
        return _plans(self.command, self.config)


def _one(run: RunFolder, task: Task, shared: _Resources, progress: Progress) -> Entry:
    """One entry, engine by engine; what an interrupted run has finished is read back."""
    entry = Entry(task.model, task.dataset)
    if shared.topology:
        entry = _staged(run, task.stage, task, lambda: _topology(run, task, shared, progress))
    if shared.precision:
        begun = entry
        entry = _staged(run, f"{task.stage}: precision", task, lambda: _precision(run, task, begun, shared, progress))
    return entry


def _staged(run: RunFolder, name: str, task: Task, work: Callable[[], Entry]) -> Entry:
    if run.has_stage(name):
        with_texts = run.stage / "artifacts" / slug(task.model, task.dataset)
        return load_entry(with_texts if with_texts.is_dir() else run.stage / "artifacts" / slug(task.model, ""))
    with _stage(run, name):
        entry = work()
        save_entry(run, entry)
    return entry


def _topology(run: RunFolder, task: Task, shared: _Resources, progress: Progress) -> Entry:
    sample = shared.samples.get(task.dataset_reference)
    loaded = shared.models.get(task.reference, progress)
    entry = analyse_entry(task, loaded, sample, shared.config, shared.workers, progress)
    if shared.config.topology.vectors:
        entry = keep_vectors(run, entry)
    return keep_activations(run, entry, shared.config.activations.store)


def _precision(run: RunFolder, task: Task, begun: Entry, shared: _Resources, progress: Progress) -> Entry:
    """`begun` with a precision plan; in `run`, one that cannot be made leaves a note and the topology stands."""
    from cohomcli.jobs.precision import add_precision

    alone = not shared.topology
    loaded = shared.models.get(task.reference, progress, alone)
    try:
        spec = dataset_spec(shared.config, task.dataset_reference)
        return add_precision(run, begun, loaded, spec, shared.config, progress)
    except CohomError as error:
        if alone:
            raise
        logger.warning("%s: no precision plan: %s", task.stage, error)
        return replace(begun, precision_reason=str(error))


@contextmanager
def _stage(run: RunFolder, name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    run.finish_stage(name, time.monotonic() - begun)


class _Samples:
    """Draws each data set's texts once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._drawn: dict[str, TextSample] = {}

    def get(self, reference: str) -> TextSample:
        from cohomcli.data.sample import load_texts

        if reference not in self._drawn:
            self._drawn[reference] = load_texts(dataset_spec(self.config, reference), *_draw(self.config))
        return self._drawn[reference]


def _draw(config: Config) -> tuple[int, int]:
    return config.data.samples, config.compute.seed


def dataset_spec(config: Config, reference: str) -> DatasetSpec:
    """The data set `reference` with the options of `config`."""
    wanted = config.data
    return DatasetSpec(reference, wanted.config, wanted.split, wanted.field, wanted.unit, wanted.revision)


@dataclass(frozen=True)
class Finished:
    """What a command has computed and now reports: `failures` are the errors of its failed entries.

    `comparison` is given by a command that compares in its own way; else the entries are compared if there are several.
    `extra` is put into the results document beside the entries.
    """

    command: str
    config: Config
    entries: Sequence[Entry]
    failures: Sequence[CohomError] = ()
    comparison: Comparison | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_outcome(run: RunFolder, finished: Finished, progress: Progress) -> Outcome:
    """Compare the entries if there are several, write results, reports and files for pipelines; give the outcome."""
    from cohomcli.report.build import ReportContext, build
    from cohomcli.topology.comparison import compare

    command, config, entries, failures = finished.command, finished.config, finished.entries, finished.failures
    described = [entry for entry in entries if entry.topology or entry.error]
    comparison = finished.comparison
    if comparison is None and len(described) > 1:
        comparison = compare(described, config.compute.seed)
    beside = dict(finished.extra) | ({"comparison": asdict(comparison)} if comparison else {})
    document = results_document(command, entries, beside or None)
    gates = check_gates([parse_gate(text) for text in config.fail_on], document)
    if gates:
        document["gates"] = [asdict(gate) for gate in gates]
    run.write("results.json", to_json(document))
    run.manifest["trust_remote_code"] = config.loading.trust_remote_code
    run.manifest["trust"] = {entry.model: entry.info.trust for entry in entries if entry.info and entry.info.trust}
    run.manifest["seed"] = config.compute.seed
    run.manifest["inputs"] = _inputs(entries)
    with _stage(run, "report"):
        context = ReportContext(
            command=command,
            argv=tuple(run.manifest["argv"]),
            version=__version__,
            title=f"cohom {command}: {', '.join(dict.fromkeys(entry.model for entry in entries))}",
            plots=config.output.plots,
            html=config.output.html,
        )
        with writing(run.stage):
            build(entries, comparison, run.stage, context, progress)
    code = failures[0].exit_code if failures else _exit_code(command, entries, gates)
    outcome = Outcome(document, tuple(entries), run.final, code, comparison, gates, tuple(failures))
    write_verdict(outcome, config.output)
    return outcome


def _exit_code(command: str, entries: Sequence[Entry], gates: Sequence[GateOutcome]) -> int:
    """2 when a gate names an unknown metric, 1 when one tripped; 4 when `analyze-precision` found no plan that keeps
    epsilon, or could verify none.
    """
    if any(gate.unknown for gate in gates):
        return EXIT_USAGE
    if any(gate.tripped for gate in gates):
        return EXIT_GATE
    unmet = any(not getattr(entry.precision, "met", False) for entry in entries)
    return EXIT_INCOMPLETE if command == PRECISION_COMMAND and unmet else EXIT_OK


def _inputs(entries: Sequence[Entry]) -> list[dict[str, str]]:
    return [
        {
            "model": entry.model,
            "location": entry.info.location,
            "weights_sha256": entry.info.weights_sha256,
            "dataset": entry.sample.source,
            "texts_sha256": entry.sample.sha256,
        }
        for entry in entries
        if entry.info and entry.sample
    ]
