"""Where the heads and neurons of a decoder's blocks are: the maps that write, carry and read them, family by family.

A head's output is the slice of what enters the attention's output projection; grouped keys and values stay grouped. A
neuron is one input of the map that ends the MLP.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.layout import Stack
from cohomcli.models.maps import weight_matrix
from cohomcli.models.units import Unit

# How queries, keys and values share one map: one after another, or head by head (q, k, v of the first, ...).
Fused = Literal["apart", "stacked", "interleaved"]


@dataclass(frozen=True)
class Wiring:
    """Paths inside a block. `mlp` receives what `mlp_norm` puts out; `neurons` are the maps that write the neurons."""

    attn_norm: str
    reads: tuple[str, ...]
    fused: Fused
    attn_out: str
    mlp_norm: str
    mlp: str
    neurons: tuple[str, ...]
    mlp_out: str


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")


def _llama(mlp_norm: str) -> Wiring:
    return Wiring("input_layernorm", _QKV, "apart", "self_attn.o_proj", mlp_norm, "mlp", _GATED, "mlp.down_proj")


_KNOWN = (
    _llama("pre_feedforward_layernorm"),  # Gemma 2 and 3
    _llama("post_attention_layernorm"),  # Llama, Mistral, Qwen, SmolLM
    Wiring("input_layernorm", ("self_attn.qkv_proj",), "stacked", "self_attn.o_proj", "post_attention_layernorm", "mlp",
           ("mlp.gate_up_proj",), "mlp.down_proj"),  # Phi 3
    Wiring("ln_1", ("attn.c_attn",), "stacked", "attn.c_proj", "ln_2", "mlp", ("mlp.c_fc",), "mlp.c_proj"),  # GPT-2
    Wiring("self_attn_layer_norm", _QKV, "apart", "self_attn.out_proj", "final_layer_norm", "fc1", ("fc1",),
           "fc2"),  # OPT
    Wiring("input_layernorm", ("attention.query_key_value",), "interleaved", "attention.dense",
           "post_attention_layernorm", "mlp", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),  # GPT-NeoX, Pythia
    Wiring("input_layernorm", ("self_attention.query_key_value",), "interleaved", "self_attention.dense",
           "post_attention_layernorm", "mlp", ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),  # BLOOM
    Wiring("ln_1", ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"), "apart",
           "attn.attention.out_proj", "ln_2", "mlp", ("mlp.c_fc",), "mlp.c_proj"),  # GPT-Neo
    Wiring("ln_1", ("attn.q_proj", "attn.k_proj", "attn.v_proj"), "apart", "attn.out_proj", "ln_1", "mlp",
           ("mlp.fc_in",), "mlp.fc_out"),  # GPT-J
    Wiring("input_layernorm", _QKV, "apart", "self_attn.dense", "input_layernorm", "mlp", ("mlp.fc1",),
           "mlp.fc2"),  # Phi
    Wiring("norm_1", ("attn.qkv",), "stacked", "attn.proj", "norm_2", "mlp", ("mlp.0",), "mlp.2"),  # our own
)  # fmt: skip


@dataclass(frozen=True)
class WiredBlock:
    """One block with its sizes: `width` neurons, `n_heads` heads of `head_dim`, `n_groups` shared keys and values."""

    layer: int
    block: nn.Module
    wiring: Wiring
    n_heads: int
    n_groups: int
    head_dim: int
    width: int

    def module(self, path: str) -> Any:
        """The submodule at `path`."""
        return self.block.get_submodule(path)

    @property
    def attn_out(self) -> Any:
        """The attention's output projection; its input is every head's output side by side."""
        return self.module(self.wiring.attn_out)

    @property
    def mlp_out(self) -> Any:
        """The last map of the MLP; its input is the neurons."""
        return self.module(self.wiring.mlp_out)

    def read_rows(self, kind: Literal["q", "k", "v"], index: int) -> tuple[str, Tensor]:
        """The map and its rows that make query head `index`, or the keys or values of group `index`."""
        d, within = self.head_dim, torch.arange(self.head_dim)
        if self.wiring.fused == "apart":
            return self.wiring.reads["qkv".index(kind)], index * d + within
        if self.wiring.fused == "interleaved":
            return self.wiring.reads[0], (3 * index + "qkv".index(kind)) * d + within
        before = {"q": 0, "k": self.n_heads, "v": self.n_heads + self.n_groups}[kind]
        return self.wiring.reads[0], (before + index) * d + within

    def head_columns(self, index: int) -> Tensor:
        """The inputs of the output projection that head `index` writes."""
        return index * self.head_dim + torch.arange(self.head_dim)


@dataclass(frozen=True)
class Slice:
    """Rows (outputs) and columns (inputs) of the map `name` (`layer_0.mlp.c_fc`) that belong to some units, sorted."""

    name: str
    rows: Tensor
    columns: Tensor


def wire(model: nn.Module, stack: Stack) -> tuple[WiredBlock, ...]:
    """Every block of the decoder `stack` with its heads and neurons.

    Raises:
        InputRefused: a family that is not known here, or maps that are no plain matrices.
    """
    return tuple(_wired(model, block, layer) for layer, block in enumerate(stack.blocks))


def weights_of(blocks: Iterable[WiredBlock], units: Iterable[Unit]) -> tuple[Slice, ...]:
    """The weights that `units` consist of: heads' query, key, value and output slices, neurons' rows and columns.

    Keys and values that several heads share belong to each of them.

    Raises:
        InputRefused: a unit that the model does not have.
    """
    known = {block.layer: block for block in blocks}
    rows: dict[str, set[int]] = {}
    columns: dict[str, set[int]] = {}
    for unit in units:
        block = known.get(unit.layer)
        if block is None or unit.index >= {"head": block.n_heads, "neuron": block.width, "mlp": 1}[unit.kind]:
            raise InputRefused(f"the model has no unit {unit.name}", "the circuit belongs to another model")
        _add(block, unit, rows, columns)
    names = dict.fromkeys([*rows, *columns])
    return tuple(Slice(name, _sorted(rows.get(name, ())), _sorted(columns.get(name, ()))) for name in names)


def _add(block: WiredBlock, unit: Unit, rows: dict[str, set[int]], columns: dict[str, set[int]]) -> None:
    def note(into: dict[str, set[int]], path: str, indices: Tensor) -> None:
        into.setdefault(f"layer_{block.layer}.{path}", set()).update(indices.tolist())

    if unit.kind == "head":
        group = unit.index * block.n_groups // block.n_heads
        note(rows, *block.read_rows("q", unit.index))
        note(rows, *block.read_rows("k", group))
        note(rows, *block.read_rows("v", group))
        note(columns, block.wiring.attn_out, block.head_columns(unit.index))
        return
    neurons = torch.arange(block.width) if unit.kind == "mlp" else torch.tensor([unit.index])
    for path in block.wiring.neurons:
        copies = weight_matrix(block.module(path)).shape[0] // block.width  # two where gate and up share a map
        for at in range(copies):
            note(rows, path, neurons + at * block.width)
    note(columns, block.wiring.mlp_out, neurons)


def _sorted(indices: Iterable[int]) -> Tensor:
    return torch.tensor(sorted(indices), dtype=torch.int64)


def _wired(model: Any, block: nn.Module, layer: int) -> WiredBlock:
    for wiring in _KNOWN:
        parts = [_at(block, path) for path in (wiring.attn_norm, wiring.mlp_norm, wiring.mlp)]
        maps = [_at(block, path) for path in (*wiring.reads, wiring.attn_out, *wiring.neurons, wiring.mlp_out)]
        if all(part is not None for part in parts) and all(_is_matrix(each) for each in maps):
            return _sized(model, block, layer, wiring)
    raise InputRefused(
        f"the heads and neurons of {type(block).__name__} are not known here",
        "GPT-2, GPT-Neo, GPT-J, GPT-NeoX, OPT, BLOOM, Llama, Mistral, Qwen, Gemma and Phi are",
    )


def _sized(model: Any, block: nn.Module, layer: int, wiring: Wiring) -> WiredBlock:
    config = model.config.get_text_config()
    own = getattr(_at(block, "attn"), "heads", None)  # our own architectures: their levels differ
    n_heads = int(own or config.num_attention_heads)
    channels = weight_matrix(block.get_submodule(wiring.attn_out)).shape[1]
    head_dim = channels // n_heads
    if wiring.fused == "apart":
        n_groups = weight_matrix(block.get_submodule(wiring.reads[1])).shape[0] // head_dim
    else:
        total = weight_matrix(block.get_submodule(wiring.reads[0])).shape[0]
        n_groups = (total // head_dim - n_heads) // 2
    if n_heads * head_dim != channels or n_groups < 1 or n_heads % n_groups:
        raise InputRefused(f"block {layer} has {channels} channels for {n_heads} heads and {n_groups} groups of keys")
    width = weight_matrix(block.get_submodule(wiring.mlp_out)).shape[1]
    return WiredBlock(layer, block, wiring, n_heads, n_groups, head_dim, width)


def _at(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _is_matrix(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2
