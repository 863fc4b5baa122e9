"""The maps of a block that are pruned, in the order data flows through them, and where their outputs go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from cohomcli.errors import InputRefused

Role = Literal["reader", "attention", "mlp"]


@dataclass(frozen=True)
class Group:
    """Maps that read the same input, as paths in the block. Writers add to the residual stream ("attention", "mlp")."""

    role: Role
    paths: tuple[str, ...]

    @property
    def key(self) -> str:
        """A name for what flows past the group."""
        return self.paths[0]


@dataclass(frozen=True)
class Anatomy:
    """A family's block. `post_norm`: the sum is normed, so an MLP adds to what it reads, not to the block's stream.

    `attention` is a module that returns (what the attention adds, anything), or None where no module does. `heads` says
    that queries, keys and values are maps of their own, the first group, and that the class reads `head_dim`: only then
    can stock classes load a model with fewer heads. `experts` is a mixture of experts in the MLP's place: the last
    group is then that module, whose matrices are no maps here, and there are no channels.
    """

    groups: tuple[Group, ...]
    channels: tuple[str, ...]  # maps that write the MLP's channels
    reader: str  # the map that reads them
    width: str  # the configuration's key for their number
    post_norm: bool = False
    attention: str | None = None
    heads: bool = False
    experts: str | None = None

    @property
    def mlp(self) -> Group:
        """The MLP's last map, or a mixture in its place."""
        return next(group for group in self.groups if group.role == "mlp")

    @property
    def maps(self) -> tuple[str, ...]:
        """Paths of all matrices that can be pruned one by one."""
        return tuple(path for group in self.groups for path in group.paths if path != self.experts)


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LLAMA = Anatomy(
    (
        Group("reader", _QKV),
        Group("attention", ("self_attn.o_proj",)),
        Group("reader", ("mlp.gate_proj", "mlp.up_proj")),
        Group("mlp", ("mlp.down_proj",)),
    ),
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
    "intermediate_size",
    attention="self_attn",
    heads=True,
)
_GPT2 = Anatomy(
    (
        Group("reader", ("attn.c_attn",)),
        Group("attention", ("attn.c_proj",)),
        Group("reader", ("mlp.c_fc",)),
        Group("mlp", ("mlp.c_proj",)),
    ),
    ("mlp.c_fc",),
    "mlp.c_proj",
    "n_inner",
    attention="attn",
)
_BERT = Anatomy(
    (
        Group("reader", ("attention.self.query", "attention.self.key", "attention.self.value")),
        Group("attention", ("attention.output.dense",)),
        Group("reader", ("intermediate.dense",)),
        Group("mlp", ("output.dense",)),
    ),
    ("intermediate.dense",),
    "output.dense",
    "intermediate_size",
    post_norm=True,
)
_OPT = Anatomy(
    (
        Group("reader", _QKV),
        Group("attention", ("self_attn.out_proj",)),
        Group("reader", ("fc1",)),
        Group("mlp", ("fc2",)),
    ),
    ("fc1",),
    "fc2",
    "ffn_dim",
    attention="self_attn",
)
_OWN = Anatomy(  # cohomcli.nn
    (
        Group("reader", ("attn.qkv",)),
        Group("attention", ("attn.proj",)),
        Group("reader", ("mlp.0",)),
        Group("mlp", ("mlp.2",)),
    ),
    ("mlp.0",),
    "mlp.2",
    "intermediate_size",
)
_MIXTURES = tuple(
    replace(_LLAMA, groups=(*_LLAMA.groups[:2], Group("mlp", (path,))), channels=(path,), reader=path, experts=path)
    for path in ("mlp", "block_sparse_moe")
)
KNOWN = (_LLAMA, _GPT2, _BERT, _OPT, _OWN)


def anatomy_of(block: nn.Module) -> Anatomy:
    """The anatomy whose every path exists in `block`.

    Raises:
        InputRefused: none, or its maps are no plain matrices.
    """
    for anatomy in KNOWN:
        parts = [at(block, path) for group in anatomy.groups for path in group.paths]
        if all(part is not None for part in parts):
            if not all(isinstance(getattr(part, "weight", None), Tensor) for part in parts):
                break
            return anatomy
    for anatomy in _MIXTURES:
        if all(at(block, path) is not None for path in (*anatomy.maps, f"{anatomy.experts}.experts")):
            return anatomy
    raise InputRefused(
        f"blocks of the class {type(block).__name__} cannot be pruned yet",
        "Llama, Mistral, Mixtral, Qwen, Gemma, GPT-2, BERT, RoBERTa and OPT can",
    )


def at(module: nn.Module, path: str) -> Any:
    """The submodule at `path`, or None."""
    current: Any = module
    for part in path.split("."):
        current = getattr(current, part, None)
    return current


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (in, out), as in the Conv1D of GPT-2."""
    return type(module).__name__ == "Conv1D"
