"""What an ablation trains on: the texts of a data set, or a generated task, with the model that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config
from cohomcli.data.answers import END, PAD, SEPARATOR, AnsweredSplits
from cohomcli.errors import InputRefused, UsageError
from cohomcli.jobs.entry import load_options
from cohomcli.registry import Registry, did_you_mean

if TYPE_CHECKING:
    from cohomcli.data.spec import TextSample
    from cohomcli.training.ablation import AblationTask
    from cohomcli.training.ablation_results import Metric

DEFAULT_MODEL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
TASKS = Registry("ablation.task")


@dataclass(frozen=True)
class Subject:
    """The task, and how reports call its model and data."""

    task: AblationTask
    model: str
    dataset: str


def subject_of(config: Config) -> Subject:
    """The task of `config.ablation` with its model.

    Raises:
        UsageError: unknown options, or a model that has no head for the task.
        InputRefused: data that cannot be read.
    """
    make: Callable[[Config], Subject] = TASKS.get(config.ablation.task)
    return make(config)


@TASKS.register("text")
def _text(config: Config) -> Subject:
    """Texts in three parts: the built-in corpus by its splits; others by hash, what is kept apart in halves."""
    from copy import deepcopy

    from cohomcli.jobs.train import load_model, task_of
    from cohomcli.models.load import new_model
    from cohomcli.training.ablation import AblationTask
    from cohomcli.training.data import text_blocks

    if config.ablation.options:
        raise UsageError("ablation.options belong to a generated task", "name one with --ablate-task")
    loaded = load_model(config)
    task = task_of(loaded, config.training.objective)
    sample, validation, test = _three_parts(config)
    length, vocabulary, seed = config.training.block_size, loaded.info.vocab_size, config.compute.seed
    if loaded.info.max_positions is not None and length > loaded.info.max_positions:
        raise UsageError(f"--block-size {length} is more than the {loaded.info.max_positions} positions of the model")
    train, valid, judged = (
        replace(
            text_blocks(loaded.tokenizer, texts, length, task, vocabulary, seed), mask_rate=config.training.mask_rate
        )
        for texts in (sample.texts, validation, test)
    )
    architecture = config.training.architecture

    def make(start: int) -> Any:
        if architecture is None:
            return deepcopy(loaded.model).requires_grad_(True)
        fresh = new_model(architecture, load_options(config), config.training.objective, start).model
        return fresh.requires_grad_(True)

    about = f"{task} language modelling in blocks of {length} tokens"
    wanted = AblationTask("text", about, make, task, train, valid, judged, _metric(config, "loss"), False)
    return Subject(wanted, loaded.info.name, sample.name)


def _three_parts(config: Config) -> tuple[TextSample, tuple[str, ...], tuple[str, ...]]:
    """Texts to train on, to choose weights by, and to judge by: the splits of the built-in corpus, or by hash."""
    from cohomcli.data.sample import load_all_texts
    from cohomcli.jobs.analyze import dataset_spec
    from cohomcli.jobs.train import texts_of

    spec = dataset_spec(config, config.datasets[0])
    if spec.reference == "builtin" and config.training.eval_split is None:
        sample, test = texts_of(config)
        chosen = load_all_texts(replace(spec, split="calibration"), config.training.eval_texts, config.compute.seed)
        return sample, chosen.texts, test
    sample, held_out = texts_of(config)
    middle = len(held_out) // 2
    if middle == 0:
        raise InputRefused("one text is kept apart and an ablation validates and tests", "give more texts")
    return sample, held_out[:middle], held_out[middle:]


@TASKS.register("scan")
def _scan(config: Config) -> Subject:
    from cohomcli.data.scan import ScanOptions, scan

    return _answered(config, scan(_options(config, ScanOptions), config.compute.seed))


@TASKS.register("listops")
def _listops(config: Config) -> Subject:
    from cohomcli.data.listops import ListOpsOptions, listops

    return _answered(config, listops(_options(config, ListOpsOptions), config.compute.seed))


@TASKS.register("modular")
def _modular(config: Config) -> Subject:
    from cohomcli.data.modular import ModularOptions, modular

    return _answered(config, modular(_options(config, ModularOptions), config.compute.seed))


@TASKS.register("digits")
def _digits(config: Config) -> Subject:
    """Handwritten digits as rows of grey levels behind their class; a share `mask_rate` of the cells is asked for."""
    import torch

    from cohomcli.data.digitrows import DigitOptions, digit_rows
    from cohomcli.training.ablation import AblationTask
    from cohomcli.training.data import TextBlocks

    rows = digit_rows(_options(config, DigitOptions), config.compute.seed)

    def blocks(ids: Sequence[Sequence[int]]) -> TextBlocks:
        known = torch.tensor(ids, dtype=torch.int64)
        cells = torch.ones_like(known, dtype=torch.bool)
        cells[:, 0] = False  # the class is given
        rate, seed = config.training.mask_rate, config.compute.seed
        return TextBlocks(known, "masked", cells, rows.mask_id, rows.levels, rate, seed)

    train, valid, judged = (blocks(part) for part in (rows.train, rows.validation, rows.test))
    make = _new(config, rows.vocabulary, "masked")
    wanted = AblationTask(
        "digits", rows.about, make, "masked", train, valid, judged, _metric(config, "accuracy"), False
    )
    return Subject(wanted, _model_name(config), "digits")


def _answered(config: Config, splits: AnsweredSplits) -> Subject:
    from cohomcli.training.ablation import AblationTask
    from cohomcli.training.answers import answer_rows

    ids = {word: at for at, word in enumerate(splits.vocabulary)}
    marks = (PAD, SEPARATOR, END)
    train, validation, test = (answer_rows(part, ids, marks) for part in (splits.train, splits.validation, splits.test))
    make = _new(config, len(ids), "causal")
    metric = _metric(config, "accuracy")
    task = AblationTask(splits.name, splits.about, make, "causal", train, validation, test, metric, True)
    return Subject(task, _model_name(config), splits.name)


def _new(config: Config, vocabulary: int, objective: str) -> Callable[[int], Any]:
    """A new model of `training.architecture` for a vocabulary without a tokenizer, by seed."""
    if config.training.objective not in ("auto", objective):
        raise UsageError(f"the task is {objective}, not {config.training.objective}", "use --objective auto")
    architecture = config.training.architecture or DEFAULT_MODEL

    def make(seed: int) -> Any:
        import torch

        from cohomcli.models.fresh import build_new

        torch.manual_seed(seed)
        _, model, head = build_new(dict(architecture), load_options(config), objective, vocabulary)
        if head != objective:
            raise InputRefused(f"{type(model).__name__} has a {head} head and the task is {objective}")
        return model.to(config.compute.device)

    return make


def _model_name(config: Config) -> str:
    return f"new-{(config.training.architecture or DEFAULT_MODEL).get('model_type', 'model')}"


def _metric(config: Config, usual: Metric) -> Metric:
    wished = config.ablation.metric
    return usual if wished == "auto" else wished


def _options(config: Config, kind: type[Any]) -> Any:
    """The options of a generated task from `ablation.options`.

    Raises:
        UsageError: an unknown option, or a value of another type.
    """
    given, known = config.ablation.options, {field.name: field.default for field in fields(kind)}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"unknown key {name!r} in ablation.options", did_you_mean(name, known))
        usual = type(known[name])
        if not isinstance(value, usual) and not (usual is float and type(value) is int):
            raise UsageError(f"ablation.options: {name} {value!r} must be of type {usual.__name__}")
    return kind(**given)
