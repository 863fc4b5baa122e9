"""A model folder opened without its blocks: their weights stay in safetensors files until one block is asked for.

Nothing in a file is executed: names and shapes come from checked headers, and the class from the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.folder import ModelFolder, read_folder
from cohomcli.models.fromfile import as_single_file
from cohomcli.models.layout import Stack, find_stacks, vocabulary
from cohomcli.models.load import load_bytes, local_folder, max_positions
from cohomcli.models.memory import FLOAT, available_bytes, refuse_if_too_big
from cohomcli.models.own import own_class
from cohomcli.models.pretrained import (
    account_for,
    choose_class,
    claims_causal,
    needs_code,
    not_loadable,
    read_transformers_config,
    skeleton,
    skeleton_with_buffers,
    usable_head,
)
from cohomcli.models.safetensors_header import read_header
from cohomcli.models.spec import LoadedModel, LoadOptions, ModelInfo, ModelKind, ModelSource
from cohomcli.models.tokenizer import find_tokenizer
from cohomcli.models.weights import fingerprint_one_by_one

Place = tuple[Path, str]  # a file and a tensor's name in it
PART = 2**20  # elements that are read and checked at a time


class BlockStore:
    """The weights of `model`, whose parameters are on the meta device, by block; all else is brought in at once.

    `places` says where every parameter lies. `n_nonzero` holds the parameters of every block that are not zero, and
    last those outside of blocks.
    """

    def __init__(self, model: nn.Module, places: Mapping[str, Place]) -> None:
        self.model, self.places = model, places
        self.stack: Stack = find_stacks(model).stacks[0]
        names = {id(value): name for name, value in model.named_parameters()}
        self.names = [[names[id(value)] for value in block.parameters()] for block in self.stack.blocks]
        inside = {name for block in self.names for name in block}
        self.outside = [name for name in names.values() if name not in inside]
        self.prefixes = _prefixes(model, self.stack)
        self.n_nonzero = [0] * (len(self.names) + 1)
        self._here: set[int] = set()

    def is_here(self, index: int) -> bool:
        """Whether the weights of the block `index` are in memory."""
        return index in self._here

    @torch.inference_mode(False)  # whoever asks for it may, but weights must be ones that can be changed
    def load(self, index: int) -> None:
        """Bring the weights of the block `index` into memory, in float32.

        Raises:
            InputRefused: a file can no longer be read.
        """
        for name in self.names[index]:
            _put(self.model, name, self.read(name))
        self._here.add(index)

    def release(self, index: int) -> None:
        """Forget the weights of the block `index`, of whatever size they are by now."""
        block = self.stack.blocks[index]
        for name, value in list(block.named_parameters()):
            _put(block, name, torch.empty_like(value, device="meta"))
        self._here.discard(index)

    def load_outside(self) -> None:
        """Bring in embeddings, norms and head, and tie what is tied."""
        for name in self.outside:
            _put(self.model, name, self.read(name))
        cast(Any, self.model).tie_weights()

    def tensors(self, index: int) -> dict[str, Tensor]:
        """The block's parameters by their names in the whole model, as they are now."""
        return {self.prefixes[index] + name: value for name, value in self.stack.blocks[index].named_parameters()}

    def survey(self, name: str) -> str:
        """Read everything once: refuse what is not finite, count what is not zero; returns the fingerprint.

        Raises:
            InputRefused: `name`, the model, holds NaN or infinity, or a file cannot be read.
        """
        owner = {each: index for index, block in enumerate(self.names) for each in block}
        buffers = dict(self.model.named_buffers())
        here = {key: value for key, value in self.model.named_parameters() if not value.is_meta}

        def tensor(key: str) -> Tensor:
            if key in buffers:
                return buffers[key]
            value = here[key] if key in here else self.read(key)
            if count := sum(int((~torch.isfinite(part)).sum()) for part in torch.split(value.flatten(), PART)):
                raise InputRefused(
                    f"model {name!r} has {count} NaN or infinite weights in {key!r}",
                    "the file is corrupt or training diverged",
                )
            self.n_nonzero[owner.get(key, -1)] += int(value.count_nonzero())
            return value

        return fingerprint_one_by_one([*(key for key, _ in self.model.named_parameters()), *buffers], tensor)

    def read(self, name: str) -> Tensor:
        """One parameter in memory of its own, float32; of the file only a part is mapped into memory at a time."""
        from safetensors import SafetensorError, safe_open

        file, key = self.places[name]
        shape = self.model.get_parameter(name).shape
        found = torch.empty(shape)
        rows = max(1, PART * len(found) // max(1, found.numel())) if found.dim() else 0
        try:
            for start in range(0, len(found), rows) if rows else ():
                with safe_open(str(file), framework="pt") as stream:
                    found[start : start + rows] = stream.get_slice(key)[start : start + rows]
            if not rows:
                with safe_open(str(file), framework="pt") as stream:
                    found.copy_(stream.get_tensor(key))
        except (SafetensorError, OSError, ValueError) as error:
            raise not_loadable(str(file.parent), error) from error
        return found


@dataclass(frozen=True)
class StreamedModel(LoadedModel):
    """A language model whose blocks are in `store`."""

    store: BlockStore | None = None


def does_not_fit(source: ModelSource, options: LoadOptions) -> bool:
    """Whether `source` is a folder of safetensors whose model is larger than the free memory.

    Raises:
        InputRefused: a folder that `load` refuses too.
    """
    source = as_single_file(source, options)
    if source.gguf_file or source.kind == "file":
        return False
    folder = read_folder(local_folder(source, options), source.weights_file)
    if not folder.is_safetensors or needs_code(folder.config):
        return False
    config = read_transformers_config(folder, trust_remote_code=False)
    return own_class(config) is None and load_bytes(folder, config) > available_bytes()


def open_streamed(source: ModelSource, options: LoadOptions) -> StreamedModel:
    """Open the model without its blocks. All of its files are read once, for their fingerprint.

    Raises:
        UsageError: another device than the processor.
        InputRefused: no folder of safetensors, code of its own, no tokenizer, weights that do not match, or what `load`
            refuses.
        AnalysisIncomplete: embeddings and one block do not fit into memory.
    """
    folder, config = _readable(source, options)
    found = find_tokenizer(source, folder.path, config, options)
    if found.refusal:
        raise found.refusal
    refuse_if_too_big(source.name, _least_bytes(skeleton(config)))
    model = skeleton_with_buffers(config).eval().requires_grad_(False)
    if hasattr(model, "generation_config"):
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig()  # as `load` leaves it, whatever the folder says
    store = BlockStore(model, _places(folder, model))
    store.load_outside()
    return StreamedModel(model, found.tokenizer, _info(source, store, options), notes=found.notes, store=store)


def _readable(source: ModelSource, options: LoadOptions) -> tuple[ModelFolder, Any]:
    """The folder and its configuration; raises as `open_streamed`."""
    if options.device != "cpu":
        raise UsageError(f"--stream works on the processor, not on {options.device!r}", "leave --device out")
    source = as_single_file(source, options)
    if source.gguf_file or source.kind == "file":
        raise InputRefused(f"{source.name!r} is one file: --stream reads a folder of safetensors")
    folder = read_folder(local_folder(source, options), source.weights_file)
    if not folder.is_safetensors or needs_code(folder.config):
        raise InputRefused(f"{str(folder.path)!r}: --stream reads safetensors of models that transformers knows")
    config = read_transformers_config(folder, trust_remote_code=False)
    if own_class(config):
        raise InputRefused(f"blocks of {source.name!r} read weights of their neighbours: it cannot be streamed")
    return folder, config


def _info(source: ModelSource, store: BlockStore, options: LoadOptions) -> ModelInfo:
    """What `load` says of the model; reads all of its weights once."""
    model: Any = store.model
    kind: ModelKind = "decoder" if claims_causal(model.config) else "encoder"
    return ModelInfo(
        name=source.name,
        source=source.kind,
        location=source.name if source.kind == "builtin" else source.location,
        architecture=type(model).__name__,
        kind=kind,
        n_layer=len(store.stack.blocks),
        hidden_size=int(model.config.get_text_config().hidden_size),
        vocab_size=vocabulary(model),
        n_parameters=sum(value.numel() for value in model.parameters()),
        max_positions=max_positions(model),
        lm_head=usable_head(choose_class(model.config)[1], kind, type(model).__name__),
        weights_sha256=store.survey(source.name),
        trust_remote_code=options.trust_remote_code,
    )


def _least_bytes(model: nn.Module) -> int:
    """Float32 bytes of what lies outside of blocks, of all buffers, and of the largest block twice (as it is read).

    Raises:
        InputRefused: blocks are not found, or there are two stacks.
    """
    layout = find_stacks(model)
    if layout.is_encoder_decoder:
        raise InputRefused("encoder-decoders cannot be pruned yet", "decoders and encoders can")
    sizes = [FLOAT * sum(value.numel() for value in block.parameters()) for block in layout.stacks[0].blocks]
    whole = FLOAT * sum(value.numel() for value in model.parameters())
    return whole - sum(sizes) + 2 * max(sizes) + sum(value.nbytes for value in model.buffers())


def _places(folder: ModelFolder, model: Any) -> dict[str, Place]:
    """Where every parameter lies; a checkpoint may leave out, or add, the prefix of the model without its head.

    Raises:
        InputRefused: parameters are missing, left over or of another shape.
    """
    stored = {key: (file, entry) for file in folder.weights for key, entry in read_header(file).items()}
    places: dict[str, Place] = {}
    wrong: list[tuple[str, Any, Any]] = []
    used: set[str] = set()
    for name, value in model.named_parameters(remove_duplicate=False):
        key = next((each for each in _spellings(name, model.base_model_prefix) if each in stored), None)
        if key is None:
            continue
        file, entry = stored[key]
        used.add(key)
        places[name] = (file, key)
        if entry.shape != tuple(value.shape):
            wrong.append((name, entry.shape, tuple(value.shape)))
    known = {id(value): name for name, value in model.named_parameters(remove_duplicate=False) if name in places}
    missing = []
    for name, value in model.named_parameters():
        if name not in places and id(value) in known:
            places[name] = places[known[id(value)]]  # stored under the name it is tied to
        elif name not in places:
            missing.append(name)
    used |= stored.keys() & dict(model.named_buffers()).keys()
    report = {"missing_keys": missing, "unexpected_keys": sorted(stored.keys() - used), "mismatched_keys": wrong}
    account_for(folder, model, report)
    return places


def _spellings(name: str, prefix: str) -> Iterator[str]:
    yield name
    yield name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else f"{prefix}.{name}"


def _prefixes(model: nn.Module, stack: Stack) -> list[str]:
    paths = {id(module): path for path, module in model.named_modules()}
    return [f"{paths[id(block)]}." for block in stack.blocks]


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    """Put `value` where the parameter `name` of `module` is."""
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path)._parameters[leaf] = nn.Parameter(value, requires_grad=False)
