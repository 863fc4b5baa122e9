"""The job behind `cohom train --ablate`: cell after cell, each stored as it ends, then one comparison of all arms."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config, dump_yaml
from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.jobs import distributed
from cohomcli.jobs.ablation_tasks import Subject, subject_of
from cohomcli.jobs.analyze import Finished, Outcome, write_outcome
from cohomcli.jobs.compute import prepare
from cohomcli.jobs.verdicts import check_targets, write_verdict
from cohomcli.progress import Progress
from cohomcli.results import SCHEMA, Claim, Entry
from cohomcli.runs.entries import save_entry
from cohomcli.runs.files import read_json, to_json
from cohomcli.runs.folder import RunFolder
from cohomcli.training.ablation_results import AblationResult, CellResult

if TYPE_CHECKING:
    from cohomcli.training.ablation import AblationPlan, Cell
    from cohomcli.training.options import TrainOptions

COMMAND, STEP = "train", "ablate"
CELLS, RUNNING = "artifacts/cells", "running"
_TUNE_SEED = 1000  # tuning seeds begin this far above the final ones
_COST_ROUNDS = 8


@dataclass(frozen=True)
class _Parts:
    """Everything that is known before the first cell."""

    subject: Subject
    options: TrainOptions
    plan: AblationPlan
    n_parameters: int


def ablate(config: Config, argv: list[str], progress: Progress) -> Outcome:
    """Run the ablation of `config` into a new run folder.

    Raises:
        CohomError: refused input; or the time of --max-time is up, whose folder stays resumable.
    """
    check_targets(config.output)
    if distributed.world_size() > 1:
        raise UsageError("an ablation runs in one process", "start it without torchrun or accelerate launch")
    parts = _prepare(config)
    if config.ablation.compute_ratio is None:  # measured: kept in the stored configuration, so that it runs again equal
        settled = config.ablation.model_copy(update={"compute_ratio": parts.plan.compute_ratio})
        config = config.model_copy(update={"ablation": settled})
    label = f"ablate-{parts.subject.dataset}"
    run = RunFolder.create(Path(config.output.dir), COMMAND, label, argv, config.output.name, dump_yaml(config))
    return _fill(run, parts, config, progress)


def go_on(run: RunFolder, config: Config, progress: Progress) -> Outcome:
    """Go on with an interrupted ablation: the cells that lie in its folder are not run again."""
    return _fill(run, _prepare(config), config, progress)


def _prepare(config: Config) -> _Parts:
    from cohomcli.training.ablation_cost import compute_ratio, step_seconds

    prepare(config.compute)
    subject = subject_of(config)
    options = _options(config)
    wanted = config.ablation
    ratio = wanted.compute_ratio
    plan = _plan(config, ratio or 1.0)
    n_parameters = sum(p.numel() for p in subject.task.new_model(plan.seeds[0]).parameters())
    if ratio is None and "compute" in wanted.arms:
        ratio = compute_ratio(step_seconds(subject.task, ("none", "ours"), options, _COST_ROUNDS))
    return _Parts(subject, options, replace(plan, compute_ratio=ratio or 1.0), n_parameters)


def _options(config: Config) -> TrainOptions:
    """The loop's options from `training`; what ends a run early has no place where arms get equal budgets."""
    from cohomcli.jobs.train import loop_options

    wanted = config.training
    for name in ("epochs", "patience"):
        if getattr(wanted, name):
            raise UsageError(f"an ablation trains every arm for max_steps: training.{name} has no place in it")
    if wanted.exact_weight or wanted.spectral_weight:
        raise UsageError("an ablation chooses the weights itself", "leave --exact-weight and --spectral-weight at 0")
    return replace(loop_options(config, 0), max_seconds=None)


def _plan(config: Config, ratio: float) -> AblationPlan:
    from cohomcli.training.ablation import AblationPlan

    wanted, seed = config.ablation, config.compute.seed
    return AblationPlan(
        arms=tuple(dict.fromkeys(wanted.arms)),
        weights=tuple(sorted(set(wanted.weights))),
        tune_seeds=tuple(seed + _TUNE_SEED + at for at in range(wanted.tune_seeds)),
        seeds=tuple(seed + at for at in range(wanted.seeds)),
        tune_steps=wanted.tune_steps or config.training.max_steps,
        compute_ratio=ratio,
    )


def _fill(run: RunFolder, parts: _Parts, config: Config, progress: Progress) -> Outcome:
    from cohomcli.training.ablation import choose_weights, final_cells, tuning_cells
    from cohomcli.training.ablation_summary import summarise

    task, plan = parts.subject.task, parts.plan
    with run:
        cells = _Cells(run, parts, config.training.max_time, progress)
        tuning = cells.results(tuning_cells(plan))
        final = cells.results(final_cells(plan, choose_weights(plan, tuning, task.metric)))
        result = summarise(task, plan, tuning, final, parts.n_parameters, config.ablation.level)
        run.manifest["seconds"] = round(sum(stage["seconds"] for stage in run.manifest["stages"]), 3)
        entry = Entry(
            model=parts.subject.model,
            dataset=parts.subject.dataset,
            ablation=result,
            claims=tuple(_claims(result)),
        )
        save_entry(run, entry)
        outcome = write_outcome(run, Finished(COMMAND, config, [entry]), progress)
    write_verdict(outcome, config.output)
    return outcome


class _Cells:
    """Runs cells that are not stored yet; a cell's file appears when it is whole."""

    def __init__(self, run: RunFolder, parts: _Parts, limit: float | None, progress: Progress) -> None:
        from cohomcli.training.ablation import tuning_cells

        self.run, self.parts, self.progress = run, parts, progress
        self.started, self.limit = time.monotonic(), limit
        plan = parts.plan
        self.total = len(tuning_cells(plan)) + len(plan.arms) * len(plan.seeds)
        self.done, self.ran = 0, 0

    def results(self, cells: Sequence[Cell]) -> list[CellResult]:
        """The results of `cells` in order.

        Raises:
            AnalysisIncomplete: the time is up between two cells; one at least is run.
        """
        found = []
        for cell in cells:
            self.progress(STEP, self.done, self.total)
            found.append(self._stored(cell) or self._new(cell))
            self.done += 1
        self.progress(STEP, self.done, self.total)
        return found

    def _stored(self, cell: Cell) -> CellResult | None:
        path = self.run.stage / CELLS / f"{cell.key}.json"
        if not path.exists():
            return None
        try:
            return CellResult(**read_json(path))
        except TypeError as error:
            raise InputRefused(f"{str(path)!r} is damaged or of another version", "remove it and resume") from error

    def _new(self, cell: Cell) -> CellResult:
        from cohomcli.training.ablation import run_cell

        if self.limit is not None and self.ran and time.monotonic() - self.started > self.limit:
            raise AnalysisIncomplete(
                f"the time is up after {self.done} of {self.total} runs", "cohom train --resume latest goes on"
            )
        begun = time.process_time()
        folder = self.run.path(f"{RUNNING}/{cell.key}/state").parent
        result = run_cell(self.parts.subject.task, self.parts.plan, cell, self.parts.options, folder)
        self.run.write(f"{CELLS}/{cell.key}.json", to_json(asdict(result)))
        self.run.finish_stage(cell.key, time.process_time() - begun)
        rmtree(self.run.stage / RUNNING)
        self.ran += 1
        return result


def _claims(result: AblationResult) -> Iterator[Claim]:
    for one in result.comparisons:
        low, high = one.interval
        what = f"{one.arm} against {one.against} on {result.task}: {one.verdict}"
        figures = f"mean difference in {result.metric} {one.difference:+.4g}, interval {low:+.4g} to {high:+.4g}"
        yield Claim(f"{what} ({figures}, {len(result.seeds)} seeds)", "estimated")


def plan(config: Config) -> Mapping[str, Any]:
    """What `--dry-run` says: the runs, and a forecast of their CPU time from a few measured steps; nothing is written.

    Raises:
        CohomError: what the ablation would refuse.
    """
    from cohomcli.training.ablation import tuning_cells
    from cohomcli.training.ablation_cost import forecast_seconds, step_seconds

    parts = _prepare(config)
    task, wanted = parts.subject.task, parts.plan
    seconds = step_seconds(task, wanted.arms, parts.options, 3)
    numbers = count(1)
    cells = [*(cell.key for cell in tuning_cells(wanted)), *_final_names(wanted)]
    return {
        "schema": SCHEMA,
        "command": COMMAND,
        "status": "dry-run",
        "task": task.name,
        "about": task.about,
        "model": parts.subject.model,
        "n_parameters": parts.n_parameters,
        "metric": task.metric,
        "n_train": len(task.train),
        "n_validation": len(task.validation),
        "n_test": len(task.test),
        "steps": {name: wanted.steps(name, parts.options.max_steps) for name in wanted.arms},
        "step_cpu_seconds": {name: round(value, 5) for name, value in seconds.items()},
        "compute_ratio": wanted.compute_ratio,
        "cells": {f"{next(numbers):03d}": cell for cell in cells},
        "forecast_cpu_seconds": round(forecast_seconds(wanted, parts.options, seconds), 1),
        "config": config.model_dump(mode="json"),
    }


def _final_names(wanted: AblationPlan) -> list[str]:
    """Names of the final runs before their weights are known."""
    from cohomcli.training.ablation import final_cells

    return [cell.key for cell in final_cells(wanted, {})]
