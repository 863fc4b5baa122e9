"""The job behind `cohom prune`: calibrate, prune, measure before and after, and save a folder that loads anywhere."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config, dump_yaml, resolve
from cohomcli.errors import InputRefused, UsageError
from cohomcli.jobs.analyze import Finished, Outcome, write_outcome
from cohomcli.jobs.compute import prepare
from cohomcli.jobs.lowrank import loads_again, with_factors
from cohomcli.jobs.passes import check as check_passes
from cohomcli.jobs.passes import planned_passes, prune_in_passes
from cohomcli.jobs.protect import protected, protection_notes
from cohomcli.jobs.prune_measures import exactness, perplexities
from cohomcli.jobs.prune_parts import (
    Parts,
    batches_of,
    calibration_texts,
    evaluation_sets,
    held_bytes,
    heldout,
    memory_beside,
    options_of,
    stack_of,
)
from cohomcli.jobs.prune_save import save, verified
from cohomcli.jobs.prune_streamed import load_for_pruning, prune_and_save
from cohomcli.jobs.prune_topology import change_of, shape_of
from cohomcli.jobs.reload import logits_of
from cohomcli.jobs.verdicts import check_targets, write_verdict
from cohomcli.progress import Progress
from cohomcli.results import SCHEMA, Claim, Entry
from cohomcli.runs.entries import save_entry
from cohomcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from cohomcli.pruning.results import PruningResult, SweepPoint

COMMAND = "prune"
PREFILL = "prefill_cpu_seconds"  # in manifest.json: of 512 tokens, before and after


def prune(config: Config, argv: list[str], progress: Progress) -> Outcome:
    """Prune the one model of `config` into a new run folder, whose `model/` stock `from_pretrained` loads.

    Raises:
        CohomError: refused input or options, or too little text; nothing is left behind then.
    """
    check_targets(config.output)
    parts = _prepare(config)
    run = RunFolder.create(
        Path(config.output.dir), COMMAND, parts.loaded.info.name, argv, config.output.name, dump_yaml(config)
    )
    return _fill(run, parts, config, progress)


def resume(parent: Path, name: str, argv: list[str], progress: Progress) -> Outcome:
    """Do an interrupted run again in its folder, from the start and under its own configuration, to equal results."""
    run = RunFolder.reopen(parent, name, argv, COMMAND)
    config = resolve(run.stage / "config.yaml", environ={})
    return _fill(run, _prepare(config), config, progress)


def _fill(run: RunFolder, parts: Parts, config: Config, progress: Progress) -> Outcome:
    with run:
        result, notes = _result(run, parts, config, progress)
        run.manifest["seconds"] = round(result.seconds, 3)
        entry = Entry(
            model=parts.loaded.info.name,
            dataset=parts.calibration.name,
            info=parts.loaded.info,
            sample=parts.calibration,
            pruning=result,
            claims=tuple(_claims(result)),
            notes=(*parts.loaded.notes, *protection_notes(parts.loaded, config), *notes),
        )
        save_entry(run, entry)
        outcome = write_outcome(run, Finished(COMMAND, config, [entry]), progress)
    write_verdict(outcome, config.output)
    return outcome


def _result(run: RunFolder, parts: Parts, config: Config, progress: Progress) -> tuple[PruningResult, tuple[str, ...]]:
    """Prune, measure and save; the result and notes on how it came about."""
    from cohomcli.models.prefill import prefill_seconds
    from cohomcli.models.streamed import StreamedModel

    if isinstance(parts.loaded, StreamedModel):
        return prune_and_save(run, parts, parts.loaded, config, progress)
    before = perplexities(parts, progress, "evaluate dense", "check the model and its texts")
    dense, seconds = exactness(parts, config, progress), [prefill_seconds(parts.loaded.model)]
    shape = shape_of(parts.loaded, heldout(config), config, progress)
    sweep = tuple(_sweep(parts, config, progress))
    result, factors = prune_in_passes(parts, config, before, progress)
    seconds.append(prefill_seconds(parts.loaded.model))
    result = replace(
        result,
        sweep=sweep,
        exactness=(dense, exactness(parts, config, progress)),
        topology=change_of(shape, shape_of(parts.loaded, heldout(config), config, progress), result.blocks_gone),
    )
    result = with_factors(run, parts, result, factors)
    save(run, parts, result, config)
    notes = tuple(_verify(run, parts, config, progress))
    run.manifest[PREFILL] = [round(one, 4) for one in seconds]  # differs from run to run, so not in results.json
    return result, notes


def _sweep(parts: Parts, config: Config, progress: Progress) -> Iterator[SweepPoint]:
    """A copy of the model pruned at every sparsity of --sweep, and measured."""
    from cohomcli.pruning.pattern import with_sparsity
    from cohomcli.pruning.prune import prune as engine
    from cohomcli.pruning.results import SweepPoint

    for sparsity in config.pruning.sweep:
        pattern = with_sparsity(parts.options.pattern, sparsity)
        loaded = replace(parts.loaded, model=copy.deepcopy(parts.loaded.model))
        trial = replace(parts, loaded=loaded, options=replace(parts.options, pattern=pattern))
        result = engine(loaded.model, stack_of(loaded.model), trial.batches, trial.options, progress)
        found = perplexities(trial, progress, f"evaluate {pattern}", "leave this sparsity out of the sweep")
        yield SweepPoint(str(pattern), sparsity, result.drift[-1], tuple(found))


def _prepare(config: Config) -> Parts:
    from cohomcli.models.memory import map_large_blocks
    from cohomcli.pruning.forecast import refuse_if_too_big
    from cohomcli.pruning.pattern import with_sparsity
    from cohomcli.pruning.prune import check

    prepare(config.compute)
    map_large_blocks()
    if len(config.models) != 1:
        raise UsageError("prune takes one model", "run it once for each")
    options = options_of(config)
    loaded = load_for_pruning(config, options)
    if loaded.info.lm_head is None:
        raise InputRefused(f"{loaded.info.name} has no language-modelling head: nothing to measure pruning by")
    if loaded.info.kind == "encoder-decoder":
        raise InputRefused("encoder-decoders cannot be pruned yet", "decoders and encoders can")
    calibration, blocks = calibration_texts(loaded, config)
    batches = batches_of(blocks, config)
    stack = stack_of(loaded.model)
    options = protected(options, loaded, config)
    for each in (options.pattern, *(with_sparsity(options.pattern, one) for one in config.pruning.sweep)):
        check(loaded.model, stack, replace(options, pattern=each))
    check_passes(options, loaded, config)
    memory = memory_beside(loaded.model, stack, len(batches[0]["input_ids"]), options, config)
    refuse_if_too_big(loaded.model, memory)
    return Parts(loaded, options, calibration, batches, list(evaluation_sets(loaded, config)), blocks, memory)


def _verify(run: RunFolder, parts: Parts, config: Config, progress: Progress) -> Iterator[str]:
    """With --verify what `verified` says of the model, and of its factors."""
    if config.pruning.verify:
        ids = parts.batches[0]["input_ids"][:1]
        yield verified(run, parts, ids, logits_of(parts.loaded.model, ids), progress)
        if parts.options.pattern.kind == "rank":
            yield loads_again(run, parts)


def _claims(result: PruningResult) -> Iterator[Claim]:
    for one in result.perplexity:
        yield Claim(
            f"perplexity {one.before:.2f} before and {one.after:.2f} after on {one.n_predictions} tokens of "
            f"{one.dataset} ({'in' if one.domain == 'in' else 'out of'} domain)",
            "measured",
        )


def plan(config: Config) -> dict[str, Any]:
    """What `--dry-run` says; nothing is written.

    Raises:
        CohomError: what pruning would refuse.
    """

    parts = _prepare(config)
    per_batch = parts.batches[0]["input_ids"].numel()
    return {
        "schema": SCHEMA,
        "command": COMMAND,
        "status": "dry-run",
        "model": parts.loaded.info.name,
        "method": config.pruning.method,
        "pattern": str(parts.options.pattern),
        "calibration_tokens": per_batch * len(parts.batches),
        "memory_bytes": held_bytes(parts.loaded.model) + parts.memory,
        **planned_passes(parts, config),
        "config": config.model_dump(mode="json"),
    }
