"""What `cohom train --objective grid` needs before the first step: grids as sequences, and a model that fits them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config
from cohomcli.data.grids import GridSample, GridSpec, cells_of, load_grids
from cohomcli.data.spec import TextSample
from cohomcli.errors import InputRefused, UsageError
from cohomcli.jobs.entry import load_options

if TYPE_CHECKING:
    from cohomcli.models.spec import LoadedModel
    from cohomcli.training.grids import GridSequences

Size = tuple[int, int]
MODEL_TYPE = "nonlinear_transformer"
_SIZE = re.compile(r"(\d{1,4})x(\d{1,4})")


@dataclass(frozen=True)
class GridParts:
    """The model, the grids it is trained on as texts, the texts kept apart, and both as sequences."""

    loaded: LoadedModel
    sample: TextSample
    held_out: tuple[str, ...]
    train: GridSequences
    evaluation: GridSequences


def prepare_grids(config: Config) -> GridParts:
    """Read the grids and build or load the model.

    Raises:
        UsageError: options that do not fit together, or a model that is none of grids.
        InputRefused: unreadable data, or grids with other cells or classes than the model's.
    """
    wanted = config.training
    if len(config.models) != 1 or len(config.datasets) != 1:
        raise UsageError("train takes one model and one data set", "run it once for each")
    if wanted.spectral_weight:
        raise UsageError("--spectral-weight is for texts: its windows are one-dimensional", "leave it at 0 for grids")
    found, held_out = _kept_apart(config)
    size = _largest(found, held_out, parse_size(config.grids.size))
    loaded = _model(config, found, size)
    settings: Any = loaded.model.config
    _check_fit(settings, found, size)
    held_out = held_out[: wanted.eval_texts]
    seed, dropout = config.compute.seed, config.grids.class_dropout
    train = _sequences(settings, found.sample.texts, found.labels, size)
    evaluation = _sequences(settings, held_out, found.labels, size)
    return GridParts(
        loaded, found.sample, held_out, replace(train, class_dropout=dropout, seed=seed), replace(evaluation, seed=seed)
    )


def parse_size(text: str | None) -> Size | None:
    """(rows, columns) of "HxW".

    Raises:
        UsageError: it is of another form, or zero.
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip().lower())
    if not match or not int(match[1]) or not int(match[2]):
        raise UsageError(f"size {text!r} is not of the form HxW", "write for example 8x8")
    return int(match[1]), int(match[2])


def is_grid_model(model: Any) -> bool:
    """Whether `model` fills in grids: a `NonLinearTransformer` that knows its mask token and symbols."""
    settings = model.config
    known = getattr(settings, "model_type", "") == MODEL_TYPE and getattr(settings, "symbols", "")
    return bool(known) and settings.mask_token_id is not None


def _kept_apart(config: Config) -> tuple[GridSample, tuple[str, ...]]:
    """The grids to train on, and those to evaluate on: another split, or those kept apart by their hash."""
    from cohomcli.data.apart import keep_apart

    wanted, seed = config.training, config.compute.seed
    spec = GridSpec(config.datasets[0], config.grids.levels, parse_size(config.grids.size), config.data.split)
    found = load_grids(spec, wanted.texts, seed)
    if wanted.eval_split is None:
        sample, held_out = keep_apart(found.sample, wanted.eval_fraction)
        return replace(found, sample=sample), held_out
    other = load_grids(replace(spec, split=wanted.eval_split), wanted.eval_texts, seed)
    more = other.symbols if len(other.symbols) > len(found.symbols) else found.symbols
    return replace(found, labels={**other.labels, **found.labels}, symbols=more), other.sample.texts


def _largest(found: GridSample, held_out: Sequence[str], wished: Size | None) -> Size:
    texts = (*found.sample.texts, *held_out)
    largest = max(text.count("\n") + 1 for text in texts), max(len(text.partition("\n")[0]) for text in texts)
    if wished is not None and (wished[0] < largest[0] or wished[1] < largest[1]):
        raise UsageError(f"--grid-size {wished[0]}x{wished[1]} is smaller than a grid of {largest[0]}x{largest[1]}")
    return wished or largest


def _model(config: Config, found: GridSample, size: Size) -> LoadedModel:
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve

    if config.training.architecture is not None:
        return _new(config, found, size)
    loaded = load(resolve(config.models[0]), load_options(config))
    if not is_grid_model(loaded.model):
        raise UsageError(
            f"{loaded.info.name} is no model of grids",
            f"name one, or build one: training.architecture with model_type {MODEL_TYPE} (see configs/digits.yaml)",
        )
    return loaded


def _new(config: Config, found: GridSample, size: Size) -> LoadedModel:
    import torch

    from cohomcli.models.gridtokenizer import grid_tokenizer
    from cohomcli.models.load import fresh_own
    from cohomcli.nn import NonLinearConfig, NonLinearTransformer

    settings = dict(config.training.architecture or {})
    kind = settings.pop("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE:
        raise UsageError(f"training.architecture: {kind!r} is no model of grids", f"use model_type {MODEL_TYPE}")
    own: Mapping[str, Any] = {
        "vocab_size": len(found.symbols) + 1,
        "mask_token_id": len(found.symbols),
        "symbols": found.symbols,
        "class_names": list(found.class_names),
        "palette": "grey" if found.grey else "colours",
        "height": size[0],
        "width": size[1],
    }
    if twice := sorted(settings.keys() & {*own, "matrix_dim"}):
        raise UsageError(f"training.architecture: {twice[0]} follows from the data", "leave it out")
    torch.manual_seed(config.compute.seed)
    try:
        model = NonLinearTransformer(NonLinearConfig(**settings, **own))
    except (TypeError, ValueError) as error:
        raise UsageError(f"training.architecture: no model of grids can be built: {error}") from error
    return fresh_own(model, grid_tokenizer(found.symbols), load_options(config))


def _check_fit(settings: Any, found: GridSample, size: Size) -> None:
    """Refuse grids that the model was not made for."""
    if strange := sorted(set(found.symbols) - set(settings.symbols)):
        raise InputRefused(f"symbol {strange[0]!r} of the grids is none of the model's", f"it has {settings.symbols!r}")
    if strange := sorted(set(found.class_names) - set(settings.class_names)):
        raise InputRefused(f"class {strange[0]!r} of the grids is none of the model's", "build a new model")
    if size[0] > settings.height or size[1] > settings.width:
        raise InputRefused(
            f"grids of {size[0]} x {size[1]} do not fit a model for {settings.height} x {settings.width}",
            "build a new model",
        )


def _sequences(settings: Any, texts: Sequence[str], labels: Mapping[str, str], size: Size) -> GridSequences:
    import torch

    from cohomcli.training.grids import GridSequences

    cells = torch.from_numpy(cells_of(tuple(texts), settings.symbols, size, settings.mask_token_id))
    present = cells >= 0
    n_classes = len(settings.class_names)
    number = {name: at for at, name in enumerate(settings.class_names)}
    classes = torch.tensor([number.get(labels[text], n_classes) for text in texts]) if n_classes else None
    return GridSequences(
        cells=cells.masked_fill(~present, settings.mask_token_id),
        mask_id=settings.mask_token_id,
        present=None if bool(present.all()) else present,
        classes=classes,
        n_classes=n_classes,
    )
