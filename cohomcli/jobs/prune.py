"""The job behind `cohom prune`: calibrate, prune, measure before and after, and save a folder that loads anywhere."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli import __version__
from cohomcli.config import Config, dump_yaml, resolve
from cohomcli.data.spec import DatasetSpec, TextSample
from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.jobs.analyze import Finished, Outcome, dataset_spec, write_outcome
from cohomcli.jobs.compute import prepare
from cohomcli.jobs.protect import protected, protection_notes
from cohomcli.jobs.reload import logits_of, reload_elsewhere
from cohomcli.jobs.verdicts import check_targets, write_verdict
from cohomcli.permissions import open_up
from cohomcli.progress import Progress
from cohomcli.results import SCHEMA, Claim, Entry
from cohomcli.runs.entries import save_entry
from cohomcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from cohomcli.models.layout import Stack
    from cohomcli.models.pairs import PairReport
    from cohomcli.models.spec import LoadedModel
    from cohomcli.pruning.options import PruneOptions
    from cohomcli.pruning.results import Perplexity, PruningResult, SweepPoint

COMMAND = "prune"
FOLDER, RECIPE, MASKS = "model", "cohom_prune.json", "masks.safetensors"
PREFILL = "prefill_cpu_seconds"  # in manifest.json: of 512 tokens, before and after
PER_BATCH = 2048  # calibration tokens that go through a block together
EVALUATED = 4  # sequences of a batch of an evaluation
MEASURED = 2048  # calibration tokens that the exactness report is measured on


@dataclass(frozen=True)
class Parts:
    """What is known before the first map is pruned."""

    loaded: LoadedModel
    options: PruneOptions
    calibration: TextSample
    batches: list[dict[str, Tensor]]
    evaluations: list[tuple[str, str, Any]]  # name, domain, blocks
    blocks: Any  # all texts of the calibration split, packed
    memory: int  # bytes that pruning and measuring take beside the model


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
    from cohomcli.jobs.lowrank import with_factors
    from cohomcli.jobs.passes import prune_in_passes
    from cohomcli.jobs.prune_streamed import prune_and_save
    from cohomcli.jobs.prune_topology import change_of, shape_of
    from cohomcli.models.prefill import prefill_seconds
    from cohomcli.models.streamed import StreamedModel

    if isinstance(parts.loaded, StreamedModel):
        return prune_and_save(run, parts, parts.loaded, config, progress)
    before = perplexities(parts, progress, "evaluate dense", "check the model and its texts")
    dense, seconds = _exactness(parts, config, progress), [prefill_seconds(parts.loaded.model)]
    shape = shape_of(parts.loaded, heldout(config), config, progress)
    sweep = tuple(_sweep(parts, config, progress))
    result, factors = prune_in_passes(parts, config, before, progress)
    seconds.append(prefill_seconds(parts.loaded.model))
    result = replace(
        result,
        sweep=sweep,
        exactness=(dense, _exactness(parts, config, progress)),
        topology=change_of(shape, shape_of(parts.loaded, heldout(config), config, progress), result.blocks_gone),
    )
    result = with_factors(run, parts, result, factors)
    _save(run, parts, result, config)
    notes = tuple(_verify(run, parts, config, progress))
    run.manifest[PREFILL] = [round(one, 4) for one in seconds]  # differs from run to run, so not in results.json
    return result, notes


def _prepare(config: Config) -> Parts:
    from cohomcli.jobs.passes import check as check_passes
    from cohomcli.jobs.prune_streamed import load_for_pruning
    from cohomcli.models.memory import map_large_blocks
    from cohomcli.pruning.forecast import refuse_if_too_big
    from cohomcli.pruning.pattern import with_sparsity
    from cohomcli.pruning.prune import check

    prepare(config.compute)
    map_large_blocks()
    if len(config.models) != 1:
        raise UsageError("prune takes one model", "run it once for each")
    options = _options(config)
    loaded = load_for_pruning(config, options)
    if loaded.info.lm_head is None:
        raise InputRefused(f"{loaded.info.name} has no language-modelling head: nothing to measure pruning by")
    if loaded.info.kind == "encoder-decoder":
        raise InputRefused("encoder-decoders cannot be pruned yet", "decoders and encoders can")
    wanted = config.pruning
    spec = _calibration_spec(config)
    calibration, blocks = _blocks(loaded, spec, wanted.calibration_tokens, config)
    ids = blocks.ids[: wanted.calibration_tokens // wanted.block_size]
    if len(ids) < 2:
        raise InputRefused("the calibration fills fewer than two blocks", "give more text, or a shorter --block-size")
    per_batch = min(max(1, PER_BATCH // wanted.block_size), len(ids) // 2)
    batches = [_inputs(ids[at : at + per_batch]) for at in range(0, len(ids) - per_batch + 1, per_batch)]
    stack = stack_of(loaded.model)
    options = protected(options, loaded, config)
    for each in (options.pattern, *(with_sparsity(options.pattern, one) for one in config.pruning.sweep)):
        check(loaded.model, stack, replace(options, pattern=each))
    check_passes(options, loaded, config)
    memory = _memory(loaded.model, stack, per_batch, options, config)
    refuse_if_too_big(loaded.model, memory)
    return Parts(loaded, options, calibration, batches, list(_evaluations(loaded, config)), blocks, memory)


def _memory(model: Any, stack: Stack, rows: int, options: PruneOptions, config: Config) -> int:
    """Bytes beside the loaded model at the peak of the command, which calibrates on so many `rows` at a time; pruning,
    evaluation and report follow each other.
    """
    from cohomcli.pruning.forecast import evaluation_bytes, exactness_bytes, forecast_bytes

    wanted = config.pruning
    needs = [
        forecast_bytes(stack, rows * wanted.block_size, options),
        evaluation_bytes(model.config, EVALUATED, wanted.block_size),
        exactness_bytes(model.config, len(stack.blocks), rows, wanted.block_size) if wanted.exactness else 0,
    ]
    return max(needs) + (_held(model) if wanted.sweep else 0)


def _held(model: Any) -> int:
    """Bytes of the weights that are in memory."""
    return sum(int(p.nbytes) for p in model.parameters() if not p.is_meta)


def _options(config: Config) -> PruneOptions:
    from cohomcli.pruning.options import PruneOptions
    from cohomcli.pruning.pattern import parse_pattern

    wanted = config.pruning
    shrink = None if wanted.shrink == "auto" else float(wanted.shrink)
    return PruneOptions(
        wanted.method, parse_pattern(wanted.pattern), shrink, config.compute.seed, allocation=wanted.allocation
    )


def _calibration_spec(config: Config) -> DatasetSpec:
    spec = dataset_spec(config, config.pruning.calibration or config.datasets[0])
    return replace(spec, split=spec.split or "calibration")


def heldout(config: Config) -> DatasetSpec:
    """The part of the calibration's data set that is not calibrated on."""
    return replace(_calibration_spec(config), split="heldout")


def _blocks(loaded: LoadedModel, spec: DatasetSpec, tokens: int, config: Config) -> tuple[TextSample, Any]:
    """A sample of texts, packed into blocks of at least `tokens` tokens if there is so much text."""
    from cohomcli.data.sample import load_all_texts
    from cohomcli.training.data import text_blocks

    length = config.pruning.block_size
    if loaded.info.max_positions is not None and length > loaded.info.max_positions:
        raise UsageError(f"--block-size {length} is more than the {loaded.info.max_positions} positions of the model")
    task = loaded.info.lm_head or "causal"
    sample = load_all_texts(spec, 0, config.compute.seed)
    return sample, text_blocks(
        loaded.tokenizer, sample.texts, length, task, loaded.info.vocab_size, config.compute.seed
    )


def _evaluations(loaded: LoadedModel, config: Config) -> Iterator[tuple[str, str, Any]]:
    """The held-out part of the calibration data (in domain), and every data set of --eval (out of domain)."""
    others = [("out", dataset_spec(config, reference)) for reference in config.pruning.evaluate]
    wanted = [("in", heldout(config)), *others]
    count = max(1, config.pruning.evaluation_tokens // config.pruning.block_size)
    for domain, each in wanted:
        sample, blocks = _blocks(loaded, each, config.pruning.evaluation_tokens, config)
        yield sample.name, domain, replace(blocks, ids=blocks.ids[:count], maskable=blocks.maskable[:count])


def _inputs(ids: Tensor) -> dict[str, Tensor]:
    import torch

    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _prune(parts: Parts, progress: Progress) -> PruningResult:
    from cohomcli.pruning.prune import prune as engine

    return engine(parts.loaded.model, stack_of(parts.loaded.model), parts.batches, parts.options, progress)


def _sweep(parts: Parts, config: Config, progress: Progress) -> Iterator[SweepPoint]:
    """A copy of the model pruned at every sparsity of --sweep, and measured."""
    from cohomcli.pruning.pattern import with_sparsity
    from cohomcli.pruning.results import SweepPoint

    for sparsity in config.pruning.sweep:
        pattern = with_sparsity(parts.options.pattern, sparsity)
        loaded = replace(parts.loaded, model=copy.deepcopy(parts.loaded.model))
        trial = replace(parts, loaded=loaded, options=replace(parts.options, pattern=pattern))
        result = _prune(trial, progress)
        found = perplexities(trial, progress, f"evaluate {pattern}", "leave this sparsity out of the sweep")
        yield SweepPoint(str(pattern), sparsity, result.drift[-1], tuple(found))


def _exactness(parts: Parts, config: Config, progress: Progress) -> tuple[PairReport, ...]:
    from cohomcli.models.exactness import exactness_report

    if not config.pruning.exactness:
        return ()
    per_batch = parts.batches[0]["input_ids"].numel()
    batches = parts.batches[: max(1, MEASURED // per_batch)]
    return exactness_report(parts.loaded.model, stack_of(parts.loaded.model), batches, progress=progress)


def perplexities(parts: Parts, progress: Progress, step: str, hint: str) -> list[float]:
    """exp of the mean nats per predicted token on every evaluation set; masked models predict hidden tokens."""
    from cohomcli.training.loop import evaluate

    model, task = parts.loaded.model, parts.loaded.info.lm_head or "causal"
    found = []
    progress(step, 0, len(parts.evaluations))
    for done, (name, _, blocks) in enumerate(parts.evaluations, start=1):
        loss = evaluate(model, blocks, task, EVALUATED, next(model.parameters()).device)
        if not loss < 700:
            raise AnalysisIncomplete(f"the loss on {name} is {loss:.4g} nats per token", hint)
        found.append(math.exp(loss))
        progress(step, done, len(parts.evaluations))
    return found


def paired(parts: Parts, before: list[float], after: list[float]) -> Iterator[Perplexity]:
    """Both perplexities of every evaluation set."""
    from cohomcli.pruning.results import Perplexity
    from cohomcli.training.language import targets_in

    for (name, domain, blocks), old, new in zip(parts.evaluations, before, after, strict=True):
        count = targets_in(blocks.batch(range(len(blocks)), 0)["labels"])
        yield Perplexity(name, old, new, count, domain)


def _save(run: RunFolder, parts: Parts, result: PruningResult, config: Config) -> None:
    """`model/`: weights, config and tokenizer for stock classes, the masks, and all that is needed to repeat it."""
    from cohomcli.models.quiet import quiet
    from cohomcli.pruning.pattern import STRUCTURED

    folder = run.path(FOLDER)
    with quiet():
        model: Any = parts.loaded.model
        model.save_pretrained(folder)
    open_up(folder.glob("*.safetensors"))
    found = [] if parts.options.pattern.kind in STRUCTURED else pruned_weights(parts, result)
    save_beside(run, parts, result, {name: packed(weight) for name, weight in found}, config)


def save_beside(run: RunFolder, parts: Parts, result: PruningResult, masks: dict[str, Tensor], config: Config) -> None:
    """What lies in `model/` beside the weights: the tokenizer, the masks if there are, and the recipe."""
    from safetensors.torch import save_file

    from cohomcli.models.quiet import quiet

    folder = run.path(FOLDER)
    with quiet():
        parts.loaded.tokenizer.save_pretrained(folder)
    if masks:
        save_file(masks, folder / MASKS, metadata={"packing": "numpy.packbits of weight != 0, row by row"})
        open_up([folder / MASKS])
    recipe = {
        "schema": "cohom.prune/1",
        "version": __version__,
        "parent": {"location": parts.loaded.info.location, "weights_sha256": parts.loaded.info.weights_sha256},
        "calibration": {"source": parts.calibration.source, "texts_sha256": parts.calibration.sha256},
        "options": config.pruning.model_dump(mode="json"),
        "seed": parts.options.seed,
        "result": {key: value for key, value in asdict(result).items() if key != "seconds"},
    }
    run.write(f"{FOLDER}/{RECIPE}", json.dumps(recipe, indent=1, sort_keys=True, allow_nan=False) + "\n")


def pruned_weights(parts: Parts, result: PruningResult) -> Iterator[tuple[str, Any]]:
    """Name and weight, as it is stored, of every map that was pruned."""
    from cohomcli.pruning.parts import at

    blocks = stack_of(parts.loaded.model).blocks
    for one in result.maps:
        layer, _, path = one.name.partition(".")
        yield one.name, at(blocks[int(layer.removeprefix("layer_"))], path).weight


def packed(weight: Tensor) -> Tensor:
    """One bit a weight (out, in), row by row: whether it is not zero."""
    import numpy as np
    import torch

    return torch.from_numpy(np.packbits((weight.detach() != 0).numpy(), axis=1))


def _verify(run: RunFolder, parts: Parts, config: Config, progress: Progress) -> Iterator[str]:
    """With --verify what `verified` says of the model, and of its factors."""
    from cohomcli.jobs.lowrank import loads_again

    if config.pruning.verify:
        ids = parts.batches[0]["input_ids"][:1]
        yield verified(run, parts, ids, logits_of(parts.loaded.model, ids), progress)
        if parts.options.pattern.kind == "rank":
            yield loads_again(run, parts)


def verified(run: RunFolder, parts: Parts, ids: Tensor, logits: Tensor, progress: Progress) -> str:
    """Load the saved folder by stock classes in a fresh process and compare its logits on `ids` (1, T).

    Raises:
        AnalysisIncomplete: they differ, or it does not load.
    """
    progress("verify", 0, 1)
    largest = reload_elsewhere(run.stage / FOLDER, ids, logits, str(parts.loaded.info.lm_head))
    progress("verify", 1, 1)
    if largest > 0:
        raise AnalysisIncomplete(f"the saved model's logits differ by {largest:.3g} after reloading")
    return "the saved folder was loaded by transformers in a process without cohom; its logits are equal bit for bit"


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
    from cohomcli.jobs.passes import planned_passes

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
        "memory_bytes": _held(parts.loaded.model) + parts.memory,
        **planned_passes(parts, config),
        "config": config.model_dump(mode="json"),
    }


def stack_of(model: Any) -> Stack:
    """The only stack of a model."""
    from cohomcli.models.layout import find_stacks

    return find_stacks(model).stacks[0]
