"""Load a model: float32, eval mode, on its device, with its tokenizer and a fingerprint of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models import hub
from cohomcli.models.folder import ModelFolder, read_folder
from cohomcli.models.gguf import build_gguf
from cohomcli.models.gguf_header import read_gguf_header
from cohomcli.models.layout import vocabulary
from cohomcli.models.memory import FLOAT, refuse_if_too_big
from cohomcli.models.pretrained import Built, build, needs_code, read_transformers_config, skeleton, usable_head
from cohomcli.models.probe import find_layout, kind_of
from cohomcli.models.spec import LoadedModel, LoadOptions, ModelInfo, ModelSource
from cohomcli.models.tokenizer import load_tokenizer
from cohomcli.models.weights import fingerprint, refuse_non_finite


def load(source: ModelSource, options: LoadOptions) -> LoadedModel:
    """Load what `resolve` returned; hub models are downloaded into the hub's cache first.

    Raises:
        UsageError: the device does not exist.
        InputRefused: not available, not a model we read, its own code without permission, or weights that are
            corrupt, not finite, or do not match the configuration.
        AnalysisIncomplete: it does not fit into memory.
    """
    device = _device(options.device)
    try:
        if source.gguf_file:
            header = read_gguf_header(Path(source.location) / source.gguf_file)
            refuse_if_too_big(source.name, FLOAT * header.n_parameters)
            built, tokenizer = build_gguf(source)
        else:
            built, tokenizer = _load_folder(source, options)
        refuse_non_finite(built.model, source.name)
        model = built.model.eval().requires_grad_(False).to(device=device, dtype=torch.float32)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise AnalysisIncomplete(f"out of memory while loading {source.name!r}", "use a smaller model") from error
    return LoadedModel(model, tokenizer, _info(source, options, model, built))


def local_folder(source: ModelSource, options: LoadOptions) -> Path:
    """The folder on disk that holds the model, downloading a hub model first."""
    return source.path or hub.fetch(source.location, options)


def _load_folder(source: ModelSource, options: LoadOptions) -> tuple[Built, Any]:
    folder = read_folder(local_folder(source, options), source.weights_file)
    if not folder.has_tokenizer:
        raise InputRefused(
            f"model {source.name!r} has no tokenizer", "put its tokenizer.json (or vocab files) into the folder"
        )
    config = read_transformers_config(folder, options.trust_remote_code)
    refuse_if_too_big(source.name, load_bytes(folder, config))
    tokenizer = load_tokenizer(folder.path, config, options.trust_remote_code)
    return build(folder, config), tokenizer


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


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", "use cpu, cuda or mps") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device.type not in present:
        raise UsageError(f"unknown device {name!r}", "use cpu, cuda or mps")
    if not present[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"this machine has no device {name!r}", "use --device cpu")
    return device


def _info(source: ModelSource, options: LoadOptions, model: Any, built: Built) -> ModelInfo:
    layout = find_layout(model)
    kind = kind_of(layout, built.claims_causal)
    return ModelInfo(
        name=source.name,
        source=source.kind,
        location=source.name if source.kind == "builtin" else source.location,
        architecture=type(model).__name__,
        kind=kind,
        n_layer=layout.n_layer,
        hidden_size=int(model.config.get_text_config().hidden_size),
        vocab_size=vocabulary(model),
        n_parameters=sum(value.numel() for value in model.parameters()),
        max_positions=max_positions(model),
        lm_head=usable_head(built.head, kind, type(model).__name__),
        weights_sha256=fingerprint(model),
        trust_remote_code=options.trust_remote_code,
    )


def max_positions(model: Any) -> int | None:
    """How many tokens the model reads, or None when its positions are relative.

    RoBERTa and its kin start counting after the padding id, so part of their position table cannot be reached.
    """
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.num_embeddings - part.padding_idx - 1
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None
