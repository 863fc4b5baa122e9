"""The job behind `run` and `tda`: every model on every data set, one run folder, one report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli import __version__
from cohomcli.config import Config, dump_yaml, resolve
from cohomcli.data.spec import DatasetSpec, TextSample
from cohomcli.errors import EXIT_OK, CohomError
from cohomcli.jobs.compute import prepare
from cohomcli.jobs.entry import Task, analyse_entry
from cohomcli.models.spec import LoadedModel, LoadOptions
from cohomcli.names import safe_name
from cohomcli.progress import Progress
from cohomcli.results import Entry
from cohomcli.runs.entries import load_entry, results_document, save_entry, slug
from cohomcli.runs.files import to_json, writing
from cohomcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from cohomcli.topology.comparison import Comparison

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a command gives back to the command line."""

    document: dict[str, Any]
    entries: tuple[Entry, ...]
    folder: Path
    exit_code: int = EXIT_OK
    comparison: Comparison | None = None


@dataclass
class _Models:
    """Loads the models one after another; the one in use is kept, so that several data sets share it."""

    config: Config
    current: tuple[str, LoadedModel] | None = field(default=None)

    def get(self, reference: str, progress: Progress) -> LoadedModel:
        from cohomcli.models.load import load
        from cohomcli.models.resolve import resolve as resolve_model

        if self.current is None or self.current[0] != reference:
            self.current = None  # free the previous model before the next is read
            step = f"load {Path(reference).name}"
            progress(step, 0, 1)
            options = LoadOptions(
                device=self.config.compute.device,
                trust_remote_code=self.config.loading.trust_remote_code,
                revision=self.config.loading.revision,
            )
            self.current = (reference, load(resolve_model(reference), options))
            progress(step, 1, 1)
        return self.current[1]


def analyze(command: str, config: Config, argv: list[str], progress: Progress) -> Outcome:
    """Analyse every model on every data set of `config` into a new run folder.

    With several pairs a failing one does not stop the others: its entry says why, and the exit code is its error's.

    Raises:
        CohomError: the only pair failed, or all did; no run folder is left then.
    """
    parent = Path(config.output.dir)
    label = "-".join(task.model for task in tasks(config)[:3])
    run = RunFolder.create(parent, command, label, argv, config.output.name)
    run.write("config.yaml", dump_yaml(config))
    return _fill(run, command, config, progress)


def resume(command: str, parent: Path, name: str, argv: list[str], progress: Progress) -> Outcome:
    """Go on with an interrupted run from its finished stages, under the configuration it was started with."""
    run = RunFolder.reopen(parent, name, argv)
    return _fill(run, str(run.manifest["command"]), resolve(run.stage / "config.yaml", environ={}), progress)


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
        models, samples = _Models(config), _Samples(config)
        entries: list[Entry] = []
        failures: list[CohomError] = []
        wanted = tasks(config)
        for task in wanted:
            try:
                entries.append(_one(run, task, models, samples, config, workers, progress))
            except CohomError as error:
                if len(wanted) == 1:
                    raise
                logger.error("%s: %s", task.stage, error)
                failures.append(error)
                entries.append(Entry(task.model, task.dataset, error=str(error)))
        if len(failures) == len(wanted):
            raise failures[0]
        return write_outcome(run, command, config, entries, failures, progress)


def _one(
    run: RunFolder,
    task: Task,
    models: _Models,
    samples: _Samples,
    config: Config,
    workers: int,
    progress: Progress,
) -> Entry:
    if run.has_stage(task.stage):
        return load_entry(run.stage / "artifacts" / slug(task.model, task.dataset))
    with _stage(run, task.stage):
        sample = samples.get(task.dataset_reference)
        entry = analyse_entry(task, models.get(task.reference, progress), sample, config, workers, progress)
        save_entry(run, entry)
    return entry


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


def write_outcome(
    run: RunFolder,
    command: str,
    config: Config,
    entries: Sequence[Entry],
    failures: Sequence[CohomError],
    progress: Progress,
) -> Outcome:
    """Compare the entries if there are several, write results and reports, and hand back the outcome."""
    from dataclasses import asdict

    from cohomcli.report.build import ReportContext, build
    from cohomcli.topology.comparison import compare

    comparison = compare(entries, config.compute.seed) if len(entries) > 1 else None
    document = results_document(command, entries, {"comparison": asdict(comparison)} if comparison else None)
    run.write("results.json", to_json(document))
    run.manifest["trust_remote_code"] = config.loading.trust_remote_code
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
    code = failures[0].exit_code if failures else EXIT_OK
    return Outcome(document, tuple(entries), run.final, code, comparison)


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
