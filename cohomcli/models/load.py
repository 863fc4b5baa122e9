"""Load a model: float32, eval mode, on its device, with its tokenizer and a fingerprint of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models import fresh, fromfile, hub
from cohomcli.models.files.opened import OpenedFile
from cohomcli.models.folder import ModelFolder, read_folder
from cohomcli.models.gguf import build_gguf
from cohomcli.models.gguf_header import read_gguf_header
from cohomcli.models.layout import vocabulary
from cohomcli.models.memory import FLOAT, refuse_if_too_big
from cohomcli.models.pretrained import Built, build, needs_code, read_transformers_config, skeleton, usable_head
from cohomcli.models.probe import find_layout, kind_of
from cohomcli.models.spec import LoadedModel, LoadedWeights, LoadOptions, ModelInfo, ModelSource
from cohomcli.models.tokenizer import find_tokenizer
from cohomcli.models.weights import fingerprint, refuse_non_finite


def load(source: ModelSource, options: LoadOptions) -> LoadedModel:
    """Load a language model that `resolve` returned; hub models are downloaded into the hub's cache first.

    Raises:
        UsageError: the device does not exist.
        InputRefused: not available, not a model we read, its own code without permission, no tokenizer, or weights
            that are corrupt, not finite, or do not match the configuration.
        AnalysisIncomplete: it does not fit into memory.
    """
    return language_model(_load(source, options, for_texts=True))


def language_model(found: LoadedModel | LoadedWeights) -> LoadedModel:
    """`found` when texts can be fed to it; raises the InputRefused that says why not."""
    if isinstance(found, LoadedWeights):
        raise InputRefused(f"{found.info.location!r} cannot be run on texts: {found.why}", found.hint)
    if found.refusal is not None:
        raise found.refusal
    return found


def load_any(source: ModelSource, options: LoadOptions) -> LoadedModel | LoadedWeights:
    """Load whatever `resolve` returned as far as it goes: the door for commands that need no texts.

    A `LoadedModel` when there is a program: language models as from `load`, other transformers models, exported
    programs, plain `torch.nn` sequences and what `model_code` builds; `tokenizer` may be None, `samples` holds the
    inputs of an exported program, `refusal` says why `load` would refuse it. `LoadedWeights` when a file holds weights
    of an unknown architecture.

    Raises:
        As `load`, but neither for a missing tokenizer nor for unknown layers.
    """
    return _load(source, options, for_texts=False)


def new_model(architecture: Mapping[str, Any], options: LoadOptions, task: str, seed: int) -> LoadedModel:
    """A model with random weights: `architecture` is a configuration with its `model_type`, one of ours or of
    transformers'. `task` is "causal", "masked" or "auto"; the vocabulary is that of `options.tokenizer`, or of the
    built-in model for the task.

    Raises:
        UsageError: an unknown type, values that fit no model, or a task the type has no head for.
    """
    torch.manual_seed(seed)
    tokenizer, model, head = fresh.build_new(dict(architecture), options, task)
    source = ModelSource(f"new-{model.config.model_type}", "new", "random weights")
    built = Built(model, head, head == "causal")
    return language_model(_finished(source, options, _Parts(model, built, tokenizer)))


def fresh_own(model: Any, tokenizer: Any, options: LoadOptions) -> LoadedModel:
    """A new model of ours that fills in hidden tokens, built by the caller, as `load` would hand it out."""
    source = ModelSource(f"new-{model.config.model_type}", "new", "random weights")
    return language_model(_finished(source, options, _Parts(model, Built(model, "masked", False), tokenizer)))


@dataclass(frozen=True)
class _Parts:
    """A model on its way out. `built` is set for transformers models, `architecture` and `refusal` for others."""

    model: Any
    built: Built | None
    tokenizer: Any = None
    refusal: InputRefused | None = None
    architecture: str = ""
    samples: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()
    trust: dict[str, Any] | None = None


def load_opened(source: ModelSource, opened: OpenedFile, options: LoadOptions) -> LoadedModel | LoadedWeights:
    """What `load_any` makes of a file that was opened already. Raises as `load_any`."""
    if opened.model is None:
        return fromfile.weights_alone(source, opened, options)
    built = fromfile.transformers_parts(opened)
    found = find_tokenizer(source, Path(source.location).parent, built.model.config if built else None, options)
    parts = _Parts(
        model=opened.model,
        built=built,
        tokenizer=found.tokenizer,
        refusal=found.refusal if built else fromfile.no_layers(source, opened),
        architecture=fromfile.class_name(opened),
        samples=fromfile.sample_inputs(opened),
        notes=(*fromfile.file_notes(opened), *found.notes),
        trust=fromfile.trust_record(opened, options),
    )
    return _finished(source, options, parts)


def _load(source: ModelSource, options: LoadOptions, for_texts: bool) -> LoadedModel | LoadedWeights:
    _check_device(options.device)
    source = fromfile.as_single_file(source, options)
    try:
        if source.kind == "file":
            return load_opened(source, fromfile.open_file(source, options, layers=for_texts), options)
        parts = _load_gguf(source, options) if source.gguf_file else _load_folder(source, options, for_texts)
        return _finished(source, options, parts)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise AnalysisIncomplete(f"out of memory while loading {source.name!r}", "use a smaller model") from error


def _finished(source: ModelSource, options: LoadOptions, parts: _Parts) -> LoadedModel:
    """Check the weights, bring the model into its final form, and say what it is."""
    refuse_non_finite(parts.model, source.name)
    fromfile.refuse_complex(parts.model, source.name)
    device = torch.device(options.device)
    parts.model.eval().requires_grad_(False).to(device=device, dtype=torch.float32)
    info, refusal = _info(source, options, parts)
    return LoadedModel(
        model=parts.model,
        tokenizer=parts.tokenizer,
        info=info,
        samples=tuple(value.to(device) for value in parts.samples),
        notes=(*parts.notes, *fromfile.unused_options(source, options)),
        refusal=refusal,
    )


def local_folder(source: ModelSource, options: LoadOptions) -> Path:
    """The folder on disk that holds the model, downloading a hub model first."""
    return source.path or hub.fetch(source.location, options)


def _load_gguf(source: ModelSource, options: LoadOptions) -> _Parts:
    header = read_gguf_header(Path(source.location) / str(source.gguf_file))
    refuse_if_too_big(source.name, FLOAT * header.n_parameters)
    built, own = build_gguf(source)
    if options.tokenizer is None:
        return _Parts(built.model, built, own)
    other = find_tokenizer(source, None, built.model.config, options)
    return _Parts(built.model, built, other.tokenizer, notes=other.notes)


def _load_folder(source: ModelSource, options: LoadOptions, for_texts: bool) -> _Parts:
    folder = read_folder(local_folder(source, options), source.weights_file)
    config = read_transformers_config(folder, options.trust_remote_code)
    found = find_tokenizer(source, folder.path, config, options)
    if for_texts and found.refusal:  # before a byte of the weights is read
        raise found.refusal
    refuse_if_too_big(source.name, load_bytes(folder, config))
    built = build(folder, config)
    return _Parts(built.model, built, found.tokenizer, found.refusal, notes=found.notes)


def load_bytes(folder: ModelFolder, config: Any) -> int:
    """Bytes that loading takes at its peak: the float32 model, and for torch files the file read into memory.

    The model's size comes from the configuration, not the file: transformers allocates what the configuration says.
    """
    stored = sum(entry.n_elements for entry in folder.tensors().values())
    extra = 0 if folder.is_safetensors else folder.weight_bytes
    if needs_code(folder.config):
        return FLOAT * int(stored) + extra  # its size is known only to its code
    model = skeleton(config)
    claimed: int = sum(value.numel() * FLOAT for value in model.parameters())
    claimed += sum(value.nbytes for value in model.buffers())
    return max(claimed, FLOAT * stored) + extra


def _check_device(name: str) -> None:
    """Refuse a device that torch does not know or this machine does not have, before anything is read.

    Raises:
        UsageError: it is one of these.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", "use cpu, cuda or mps") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device.type not in present:
        raise UsageError(f"unknown device {name!r}", "use cpu, cuda or mps")
    if not present[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"this machine has no device {name!r}", "use --device cpu")


def _info(source: ModelSource, options: LoadOptions, parts: _Parts) -> tuple[ModelInfo, InputRefused | None]:
    """What the model is, and why `load` refuses it, if it does."""
    model, built = parts.model, parts.built
    facts: dict[str, Any] = {"kind": "module", "n_layer": 0, "hidden_size": 0, "vocab_size": 0}
    refusal = parts.refusal
    if built is not None:
        try:
            facts = _language_facts(built)
        except InputRefused as error:  # a transformers model of another kind, or one whose layers we do not find
            refusal = error
    info = ModelInfo(
        name=source.name,
        source=source.kind,
        location=source.name if source.kind == "builtin" else source.location,
        architecture=parts.architecture or type(model).__name__,
        n_parameters=sum(value.numel() for value in model.parameters()),
        **{"max_positions": None, "lm_head": None, **facts},
        weights_sha256=fingerprint(model),
        trust_remote_code=options.trust_remote_code,
        trust=parts.trust or {},
    )
    return info, refusal


def _language_facts(built: Built) -> dict[str, Any]:
    """The figures of a language model; raises InputRefused for models that are none."""
    model = built.model
    layout = find_layout(model)
    kind = kind_of(layout, built.claims_causal)
    return {
        "kind": kind,
        "n_layer": layout.n_layer,
        "hidden_size": int(model.config.get_text_config().hidden_size),
        "vocab_size": vocabulary(model),
        "max_positions": max_positions(model),
        "lm_head": usable_head(built.head, kind, type(model).__name__),
    }


def max_positions(model: Any) -> int | None:
    """How many tokens the model reads, or None when its positions are relative.

    RoBERTa and its kin start counting after the padding id, so part of their position table cannot be reached.
    """
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.num_embeddings - part.padding_idx - 1
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None
