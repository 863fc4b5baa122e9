"""Consecutive linear maps of a transformer: what a block's MLP writes, and what the next block's attention reads of it.

Between the two stand the residual stream and a norm. The norm's learned gain is a diagonal map and belongs to the
reader; its division by the token's own size changes no direction and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.layout import Layout, find_stacks
from cohomcli.nn.exactness import MapPair

# The last map of a block's MLP; the first path that exists counts.
_WRITERS = (
    "mlp.c_proj",  # GPT-2, GPT-Neo
    "mlp.down_proj",  # Llama, Mistral, Qwen, Gemma
    "mlp.dense_4h_to_h",  # GPT-NeoX, BLOOM, Falcon
    "mlp.fc_out",  # GPT-J
    "mlp.fc2",  # Phi
    "mlp.Wo",  # ModernBERT
    "output.dense",  # BERT, RoBERTa, ELECTRA
    "ffn.lin2",  # DistilBERT
    "fc2",  # OPT
)
# (whose norm: "next" block's before its attention or "own" after the MLP, the norm, the maps that read)
_READERS = (
    ("next", "ln_1", ("attn.c_attn",)),
    ("next", "ln_1", ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj")),
    ("next", "ln_1", ("attn.q_proj", "attn.k_proj", "attn.v_proj")),
    ("next", "input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("next", "input_layernorm", ("attention.query_key_value",)),
    ("next", "input_layernorm", ("self_attention.query_key_value",)),
    ("next", "attn_norm", ("attn.Wqkv",)),
    ("next", "self_attn_layer_norm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("own", "output.LayerNorm", ("attention.self.query", "attention.self.key", "attention.self.value")),
    ("own", "output_layer_norm", ("attention.q_lin", "attention.k_lin", "attention.v_lin")),
)
ROWS = 256  # inputs of a writer that are kept of one forward pass, evenly spaced


@dataclass(frozen=True)
class ConsecutiveMaps:
    """`writer` of block `name`, then `readers` of the next block behind `norm` (None: no norm between)."""

    name: str
    writer: nn.Module
    norm: nn.Module | None
    readers: tuple[nn.Module, ...]

    def pair(self, inputs: Tensor | None) -> MapPair:
        """Both maps as matrices, with samples (rows, n) of what goes into the writer; differentiable in the weights."""
        second = torch.cat([weight_matrix(reader) for reader in self.readers])
        return MapPair(weight_matrix(self.writer), second * gain_of(self.norm), inputs, self.name)


def consecutive_maps(model: nn.Module) -> tuple[ConsecutiveMaps, ...]:
    """The pairs between neighbouring blocks, in forward order; empty where the architecture's names are unknown here.

    Encoder-decoders give their encoder's.
    """
    try:
        layout: Layout = find_stacks(model)
    except (InputRefused, AttributeError):
        return ()
    blocks = layout.stacks[0].blocks
    found = (_between(f"layer_{at}", own, following) for at, (own, following) in enumerate(pairwise(blocks)))
    return tuple(maps for maps in found if maps is not None)


def weight_matrix(module: Any) -> Tensor:
    """The weight as (out, in): transposed for the Conv1D of GPT-2, which stores (in, out)."""
    weight: Tensor = module.weight
    return weight.T if type(module).__name__ == "Conv1D" else weight


def gain_of(norm: Any) -> Tensor | float:
    """The learned gain of a norm, (d,); 1 where there is none. Gemma's norms store it less one."""
    weight = getattr(norm, "weight", None)
    if weight is None:
        return 1.0
    gain: Tensor = 1 + weight if type(norm).__name__.startswith("Gemma") else weight
    return gain


@contextmanager
def writer_inputs(maps: tuple[ConsecutiveMaps, ...], rows: int = ROWS) -> Iterator[dict[str, Tensor]]:
    """Inside, forward passes fill the dictionary: name to (at most `rows`, n) inputs of the writer, with gradient."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            flat = args[0].flatten(0, -2)
            seen[name] = flat[:: max(1, -(-len(flat) // rows))]

        return hook

    handles = [each.writer.register_forward_pre_hook(keep(each.name)) for each in maps]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _between(name: str, own: nn.Module, following: nn.Module) -> ConsecutiveMaps | None:
    writer = next((found for path in _WRITERS if (found := _at(own, path)) is not None), None)
    if writer is None:
        return None
    for place, norm_path, reader_paths in _READERS:
        norm = _at(following if place == "next" else own, norm_path)
        readers = [_at(following, path) for path in reader_paths]
        if norm is not None and all(reader is not None for reader in readers):
            maps = ConsecutiveMaps(name, writer, norm, tuple(reader for reader in readers if reader is not None))
            return maps if _fits(maps) else None
    return None


def _fits(maps: ConsecutiveMaps) -> bool:
    """Whether every part has a plain weight matrix of the right width (quantised and sparse modules have not)."""
    parts = (maps.writer, *maps.readers)
    weights = [getattr(part, "weight", None) for part in parts]
    if not all(isinstance(weight, Tensor) and weight.dim() == 2 for weight in weights):
        return False
    width = weight_matrix(maps.writer).shape[0]
    return all(weight_matrix(reader).shape[1] == width for reader in maps.readers)


def _at(module: nn.Module, path: str) -> nn.Module | None:
    current: Any = module
    for part in path.split("."):
        current = getattr(current, part, None)
    return current if isinstance(current, nn.Module) else None
