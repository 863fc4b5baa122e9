"""The job behind `cohom train`: a model, texts, the loop; a run folder with checkpoints, curves and the final model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config, dump_yaml, resolve
from cohomcli.data.spec import TextSample
from cohomcli.errors import InputRefused, UsageError
from cohomcli.jobs import ablate, distributed
from cohomcli.jobs.analyze import Finished, Outcome, dataset_spec, write_outcome
from cohomcli.jobs.compute import prepare
from cohomcli.jobs.entry import load_options
from cohomcli.jobs.history import history
from cohomcli.jobs.masks import check_mask, keeping_zeros
from cohomcli.jobs.verdicts import check_targets, write_verdict
from cohomcli.progress import Progress, silent
from cohomcli.results import SCHEMA, Claim, Entry
from cohomcli.runs.entries import save_entry
from cohomcli.runs.folder import RunFolder
from cohomcli.training.results import TrainingResult

if TYPE_CHECKING:
    from torch import nn

    from cohomcli.models.spec import LoadedModel
    from cohomcli.training.data import Sequences, Task
    from cohomcli.training.loop import Job
    from cohomcli.training.options import TrainOptions

COMMAND = "train"
CHECKPOINTS, FINAL = "checkpoints", "model"
# options of the loop that are keys of the configuration as they are
_SAME = (
    "batch_size", "accumulation", "learning_rate", "weight_decay", "max_grad_norm", "schedule", "min_lr_ratio",
    "mixed_precision", "gradient_checkpointing", "ema_decay", "log_every", "eval_every", "save_every", "keep",
)  # fmt: skip


@dataclass(frozen=True)
class _Parts:
    """Everything that is known before the first step."""

    loaded: LoadedModel
    sample: TextSample
    train: Sequences
    evaluation: Sequences
    held_out: tuple[str, ...]
    options: TrainOptions
    task: Task


def train(config: Config, argv: list[str], progress: Progress) -> Outcome | None:
    """Train the one model of `config` on its one data set into a new run folder.

    In a distributed launch every process calls this; only the first writes, and the others get None.

    Raises:
        CohomError: refused input, or a diverged run, whose folder with its checkpoints stays under `.partial`.
    """
    if config.ablation.enabled:
        return ablate.ablate(config, argv, progress)
    check_targets(config.output)
    parts = _prepare(config)
    if not distributed.is_main():
        _train(parts, config, Path(distributed.share(None)), None, silent)
        return None
    run = RunFolder.create(
        Path(config.output.dir), COMMAND, parts.loaded.info.name, argv, config.output.name, dump_yaml(config)
    )
    return _fill(run, parts, config, progress)


def resume(parent: Path, name: str, argv: list[str], progress: Progress) -> Outcome | None:
    """Go on with an interrupted training from its newest checkpoint, under the configuration it was started with."""
    if not distributed.is_main():
        stage = Path(distributed.share(None))
        config = resolve(stage / "config.yaml", environ={})
        _train(_prepare(config), config, stage, None, silent)
        return None
    run = RunFolder.reopen(parent, name, argv, COMMAND)
    config = resolve(run.stage / "config.yaml", environ={})
    if config.ablation.enabled:
        return ablate.go_on(run, config, progress)
    return _fill(run, _prepare(config), config, progress)


def _fill(run: RunFolder, parts: _Parts, config: Config, progress: Progress) -> Outcome:
    with run:
        distributed.share(str(run.stage))
        run.manifest["launch"] = distributed.facts()
        result = _train(parts, config, run.stage, run, progress)
        result = replace(result, checkpoint=FINAL, samples=tuple(_samples(parts, config)))
        _save(parts.loaded)(parts.loaded.model, run.path(FINAL))
        run.manifest["seconds"] = round(result.seconds, 3)
        entry = Entry(
            model=parts.loaded.info.name,
            dataset=parts.sample.name,
            info=parts.loaded.info,
            sample=replace(parts.sample, texts=parts.held_out),
            training=result,
            claims=tuple(_claims(parts, result)),
            notes=(*parts.loaded.notes, *parts.sample.notes),
        )
        save_entry(run, entry)
        outcome = write_outcome(run, Finished(COMMAND, config, [entry]), progress)
    write_verdict(outcome, config.output)
    return outcome


def _prepare(config: Config) -> _Parts:
    """Load the model, cut the texts into blocks, and refuse what cannot work before anything is written."""
    from cohomcli.training.data import text_blocks

    prepare(config.compute)
    wanted = config.training
    if wanted.objective == "grid":
        return _grid_parts(config)
    loaded = load_model(config)
    check_mask(loaded.model, wanted.mask)
    task = task_of(loaded, wanted.objective)
    sample, held_out = texts_of(config)
    length = wanted.block_size
    if loaded.info.max_positions is not None and length > loaded.info.max_positions:
        raise UsageError(f"--block-size {length} is more than the {loaded.info.max_positions} positions of the model")
    vocabulary, seed = loaded.info.vocab_size, config.compute.seed
    train_blocks = text_blocks(loaded.tokenizer, sample.texts, length, task, vocabulary, seed)
    evaluation = text_blocks(loaded.tokenizer, held_out[: wanted.eval_texts], length, task, vocabulary, seed)
    train_blocks = replace(train_blocks, mask_rate=wanted.mask_rate)
    options = loop_options(config, len(train_blocks))
    return _Parts(loaded, sample, train_blocks, evaluation, held_out[: wanted.eval_texts], options, task)


def _grid_parts(config: Config) -> _Parts:
    from cohomcli.jobs.grids import prepare_grids

    grids = prepare_grids(config)
    options = loop_options(config, len(grids.train))
    return _Parts(grids.loaded, grids.sample, grids.train, grids.evaluation, grids.held_out, options, "masked")


def load_model(config: Config) -> LoadedModel:
    """The one model of `config`, from where it is named or new."""
    from cohomcli.models.load import load, new_model
    from cohomcli.models.resolve import resolve as resolve_model

    if len(config.models) != 1 or len(config.datasets) != 1:
        raise UsageError("train takes one model and one data set", "run it once for each")
    options = load_options(config)
    if config.training.architecture is not None:
        return new_model(config.training.architecture, options, config.training.objective, config.compute.seed)
    return load(resolve_model(config.models[0]), options)


def task_of(loaded: LoadedModel, wished: str) -> Task:
    """What the model's head is for; refuses a wish that differs."""
    head = loaded.info.lm_head
    if head is None:
        raise InputRefused(f"{loaded.info.name} has no language-modelling head to train", "name another model")
    if wished not in ("auto", head):
        raise UsageError(f"{loaded.info.name} is trained by the {head} objective, not {wished}", "use --objective auto")
    return head


def texts_of(config: Config) -> tuple[TextSample, tuple[str, ...]]:
    """The texts to train on, and those to evaluate on: another split, or those kept apart by their hash."""
    from cohomcli.data.apart import keep_apart
    from cohomcli.data.sample import load_all_texts

    wanted, seed = config.training, config.compute.seed
    spec = dataset_spec(config, config.datasets[0])
    eval_split = wanted.eval_split
    if spec.reference == "builtin":  # its parts are whole works: no scene stands in two of them
        spec, eval_split = replace(spec, split=spec.split or "train"), eval_split or "heldout"
    sample = load_all_texts(spec, wanted.texts, seed)
    if eval_split is None:
        return keep_apart(sample, wanted.eval_fraction)
    return sample, load_all_texts(replace(spec, split=eval_split), wanted.eval_texts, seed).texts


def loop_options(config: Config, n_sequences: int) -> TrainOptions:
    """The loop's options; `n_sequences` counts only for epochs."""
    from cohomcli.training.options import TrainOptions

    wanted = config.training
    steps = wanted.max_steps
    if wanted.epochs is not None:
        per_step = wanted.batch_size * wanted.accumulation * distributed.world_size()
        steps = max(1, round(wanted.epochs * n_sequences / per_step))
    return TrainOptions(
        max_steps=steps,
        warmup_steps=min(wanted.warmup_steps, steps),
        patience=wanted.patience,
        max_seconds=wanted.max_time,
        seed=config.compute.seed,
        **{name: getattr(wanted, name) for name in _SAME},
    )


def _train(parts: _Parts, config: Config, stage: Path, run: RunFolder | None, progress: Progress) -> TrainingResult:
    from cohomcli.training import checkpoint
    from cohomcli.training.loop import Hooks
    from cohomcli.training.loop import train as loop

    folder = stage / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    saved = checkpoint.checkpoints(folder)
    with history(stage if run else None, config.training.tensorboard, bool(saved)) as record:
        hooks = Hooks(progress, record, _measure(parts, config), _mark(run))
        return loop(_job(parts, config), parts.options, folder, hooks, saved[-1] if saved else None)


def _mark(run: RunFolder | None) -> Any:
    """Tells the manifest of the first checkpoint: from then on an interrupted run is worth keeping."""

    def saved(path: Path) -> None:
        if run is not None and not run.has_stage(CHECKPOINTS):
            run.finish_stage(CHECKPOINTS, 0.0)

    return saved


def _job(parts: _Parts, config: Config) -> Job:
    from cohomcli.jobs.optimisers import levels_for, optimizer_for
    from cohomcli.training.loop import Job, Plain
    from cohomcli.training.structure import Structural

    model, wanted = parts.loaded.model, config.training
    model.requires_grad_(True)
    structural = wanted.exact_weight > 0 or wanted.spectral_weight > 0
    levels = levels_for(model, wanted)
    return Job(
        model=model,
        task=parts.task,
        train=parts.train,
        evaluation=parts.evaluation,
        save_model=_save(parts.loaded),
        load_model=_load_weights,
        objective=Structural(model, wanted.exact_weight, wanted.spectral_weight) if structural else Plain(),
        optimizer=keeping_zeros(optimizer_for(config.training, levels), model, config.training.mask),
        levels=levels,
    )


def _save(loaded: LoadedModel) -> Any:
    from cohomcli.models.quiet import quiet

    def save(model: nn.Module, folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder, max_shard_size="1000GB")  # type: ignore[operator]
            loaded.tokenizer.save_pretrained(folder)

    return save


def _load_weights(model: Any, folder: Path) -> None:
    """Bring the weights of a checkpoint into `model`, through the door that every model comes in by."""
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve as resolve_model
    from cohomcli.models.spec import LoadOptions

    found = load(resolve_model(str(folder)), LoadOptions()).model.state_dict()
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise InputRefused(f"checkpoint {str(folder)!r} is of another architecture", "name its own model") from error


def _measure(parts: _Parts, config: Config) -> Any:
    """What is measured at every evaluation: exactness between blocks, and now and then the topology of the layers."""
    from cohomcli.training.structure import exactness_of

    rows = parts.evaluation.batch(range(min(8, len(parts.evaluation))), 0)

    def measure(step: int, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in rows.items() if name != "labels"}
        found = exactness_of(model, inputs)
        every = config.training.track_topology
        return found | (_topology(parts, config) if every and step % every == 0 else {})

    return measure


def _topology(parts: _Parts, config: Config) -> dict[str, float]:
    """Scale-free expansion and mean H1 over scale of the blocks, on the held-out texts."""
    from cohomcli.jobs.entry import activation_options, topology_options
    from cohomcli.models.activations import collect
    from cohomcli.topology.analysis import analyze_layers

    options = replace(activation_options(config), perplexity=False)
    texts = parts.held_out[: config.data.samples]
    layers = collect(parts.loaded, texts, options).layers
    result = analyze_layers(layers, topology_options(config, 1))
    blocks = [layer for layer in result.layers if layer.name.startswith("layer_")]
    figures = {"expansion_scale_free": result.expansion.scale_free}
    if blocks and len(blocks[0].summaries) > 1:
        figures["h1_over_scale"] = sum(layer.summaries[1].total_over_scale for layer in blocks) / len(blocks)
    return {name: value for name, value in figures.items() if value is not None}


def _samples(parts: _Parts, config: Config) -> Iterator[Any]:
    """What the trained model writes after the first words of held-out texts."""
    import torch

    from cohomcli.models.quiet import quiet
    from cohomcli.training.results import Sample

    model: Any = parts.loaded.model
    if parts.task != "causal" or not hasattr(model, "generate"):
        return
    torch.manual_seed(config.compute.seed)
    size = min(config.training.block_size // 2, 16)
    for text in parts.held_out[: config.training.samples]:
        ids = parts.loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][:, :size]
        with torch.no_grad(), quiet():
            given = {"max_new_tokens": 2 * size, "do_sample": True, "top_k": 0, "pad_token_id": 0}
            whole = model.generate(ids.to(model.device), attention_mask=torch.ones_like(ids), **given)[0]
        decode = parts.loaded.tokenizer.decode
        yield Sample(decode(ids[0]), decode(whole[ids.shape[1] :]))


def _claims(parts: _Parts, result: TrainingResult) -> Iterator[Claim]:
    texts = f"{len(parts.held_out)} held-out texts of {parts.sample.name}"
    yield Claim(f"{result.loss:.4f} nats per predicted token on {texts} after {result.steps} steps", "measured")


def plan(config: Config) -> Mapping[str, Any]:
    """What `--dry-run` says: parameters, data, steps and a memory forecast; nothing is written.

    Raises:
        CohomError: what training would refuse.
    """
    from cohomcli.training.forecast import forecast_bytes

    if config.ablation.enabled:
        return ablate.plan(config)
    parts = _prepare(config)
    info, options = parts.loaded.info, parts.options
    length = parts.train.batch([0], 0)["input_ids"][0].numel()
    tokens = options.batch_size * length
    return {
        "schema": SCHEMA,
        "command": COMMAND,
        "status": "dry-run",
        "model": info.name,
        "architecture": info.architecture,
        "n_parameters": info.n_parameters,
        "objective": parts.task,
        "dataset": parts.sample.source,
        "n_sequences": len(parts.train),
        "n_evaluation": len(parts.evaluation),
        "steps": options.max_steps,
        "passes": options.max_steps * options.batch_size * options.accumulation / len(parts.train),
        "tokens_per_step": tokens * options.accumulation * distributed.world_size(),
        "memory_bytes": forecast_bytes(parts.loaded.model, options, length),
        "config": config.model_dump(mode="json"),
    }
