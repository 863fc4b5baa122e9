"""Find the parts of any transformer: its stack(s) of blocks, what enters the first, what follows the last.

The block list is found structurally (a `ModuleList` as long as the configuration says) and then confirmed by running
four tokens: how often blocks are called, which norm receives the last block's output, and whether a later token can
change an earlier position. Names are only consulted where a run cannot tell.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.spec import ModelKind

# Where architectures keep the map that is added to the residual stream, before the addition (and its norm, in post-norm
# blocks). The first path that exists in a block counts; an integer indexes a list.
_ATTENTION_PATHS = (
    "attention.output.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa
    "albert_layers.-1.attention.dense",
    "attention.dense",  # GPT-NeoX: the last step of its attention
    "self_attn",  # Llama, Mistral, Qwen, Gemma, Phi, OPT, BART
    "self_attention",  # BLOOM, Falcon
    "attn",  # GPT-2, GPT-Neo, GPT-J, ModernBERT
    "attention",  # DistilBERT
    "layer.0.SelfAttention",  # T5
)
_MLP_PATHS = (
    "mlp",
    "albert_layers.-1.ffn_output",
    "ffn",  # DistilBERT, MPT
    "feed_forward",
    "block_sparse_moe",
    "output.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa
    "fc2",  # OPT, BART
    "layer.-1.DenseReluDense",  # T5
)
SITE_PATHS: dict[str, tuple[str, ...]] = {"attention": _ATTENTION_PATHS, "mlp": _MLP_PATHS}


@dataclass(frozen=True)
class Stack:
    """One stack of blocks. `blocks` are the distinct modules in order; `n_layer` counts calls (ALBERT shares blocks).

    `path` leads from the module to call (first) down to the owner of the block list (last). `final_norm` is the norm
    applied to the last block's output, or None. `prefix` is "", "encoder." or "decoder.".
    """

    prefix: str
    path: tuple[nn.Module, ...]
    blocks: tuple[nn.Module, ...]
    n_layer: int
    final_norm: nn.Module | None = None
    causal: bool = False

    @property
    def module(self) -> nn.Module:
        """The module whose forward runs the whole stack."""
        return self.path[0]


@dataclass(frozen=True)
class Layout:
    """The stacks of a model: one, or an encoder and a decoder."""

    stacks: tuple[Stack, ...]

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether there are two stacks."""
        return len(self.stacks) == 2

    @property
    def n_layer(self) -> int:
        """Blocks of all stacks together."""
        return sum(stack.n_layer for stack in self.stacks)


def find_stacks(model: nn.Module) -> Layout:
    """The layout as far as the module tree tells (no norm, no causality): also right for a model on the meta device.

    Raises:
        InputRefused: no list of blocks of the configured length.
    """
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    backbone = _backbone(model)
    encoder, decoder = getattr(backbone, "encoder", None), getattr(backbone, "decoder", None)
    if getattr(config, "is_encoder_decoder", False) and encoder is not None and decoder is not None:
        n_encoder = getattr(text, "encoder_layers", None) or text.num_hidden_layers
        n_decoder = getattr(text, "decoder_layers", None) or getattr(text, "num_decoder_layers", None) or n_encoder
        return Layout((_stack("encoder.", encoder, n_encoder), _stack("decoder.", decoder, n_decoder)))
    return Layout((_stack("", backbone, text.num_hidden_layers),))


def find_layout(model: nn.Module) -> Layout:
    """The complete layout, confirmed by a run of two rows of three tokens.

    Raises:
        InputRefused: the blocks cannot be found, or are not called once per configured layer.
    """
    layout = find_stacks(model)
    ids = _probe_ids(model)
    mask = torch.ones_like(ids)
    stacks = []
    states: Tensor | None = None
    for stack in layout.stacks:
        trace = _Trace(stack)
        with trace.attached(), torch.inference_mode():
            states = run_stack(stack, ids, mask, states, mask)
        if len(trace.outputs) != stack.n_layer:
            raise InputRefused(
                f"the configuration promises {stack.n_layer} layers but the model ran {len(trace.outputs)} blocks",
                "the architecture is not supported",
            )
        causal = _is_causal(trace.outputs[-1])
        stacks.append(Stack(stack.prefix, stack.path, stack.blocks, stack.n_layer, trace.final_norm, causal))
    return Layout(tuple(stacks))


def kind_of(layout: Layout, claims_causal: bool) -> ModelKind:
    """Encoder-decoder by structure; a stack that sees later tokens is an encoder; else what its class claims.

    A model can fail to leak by accident (all-zero attention), so 'causal' also needs the claim.
    """
    if layout.is_encoder_decoder:
        return "encoder-decoder"
    return "decoder" if layout.stacks[0].causal and claims_causal else "encoder"


def run_stack(stack: Stack, ids: Tensor, mask: Tensor, encoded: Tensor | None, encoded_mask: Tensor) -> Tensor:
    """Run one stack; returns its last hidden state (B, T, d), after the final norm and any output projection.

    `ids` and `mask` are (B, T) int64, padded on the right. A decoder of an encoder-decoder attends to `encoded`.
    """
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if "use_cache" in inspect.signature(stack.module.forward).parameters:
        arguments["use_cache"] = False
    if stack.prefix == "decoder.":
        arguments |= {"encoder_hidden_states": encoded, "encoder_attention_mask": encoded_mask}
    output: Any = stack.module(**arguments)
    states: Tensor = output[0]
    return states


def site_module(block: nn.Module, site: str) -> nn.Module | None:
    """The attention or MLP submodule of `block`, or None when its architecture is unknown here."""
    return next((found for path in SITE_PATHS[site] if (found := _descend(block, path)) is not None), None)


def first_tensor(value: Any) -> Tensor:
    """A module's output, or the first element when it returns a tuple."""
    tensor: Tensor = value[0] if isinstance(value, (tuple, list)) else value
    return tensor


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden state a block is called with, given by position or by name."""
    tensor: Tensor = args[0] if args else kwargs["hidden_states"]
    return tensor


def _backbone(model: nn.Module) -> nn.Module:
    """The model without its head: transformers' `base_model_prefix` names it."""
    backbone: nn.Module = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    return backbone


def _stack(prefix: str, module: nn.Module, n_layer: int) -> Stack:
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    exact = {name: part for name, part in lists.items() if len(part) == n_layer}
    # ALBERT calls the modules of a shorter list again and again; the run confirms the number of calls.
    shared = {name: part for name, part in lists.items() if len(part) < n_layer and n_layer % len(part) == 0}
    candidates = exact or shared
    if not candidates:
        raise InputRefused(
            f"cannot find the {n_layer} blocks of {type(module).__name__}", "the architecture is not supported"
        )
    name = max(candidates, key=lambda key: sum(p.numel() for p in candidates[key].parameters()))
    path = [module]
    for part in name.split(".")[:-1]:
        path.append(path[-1].get_submodule(part))
    return Stack(prefix, tuple(path), tuple(candidates[name]), n_layer)


def _probe_ids(model: nn.Module) -> Tensor:
    """(2, 3) int64: two rows that differ only in their last token, away from the special tokens at the low ids."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    vocab = int(embeddings.weight.shape[0])
    base = vocab // 2
    rows = [[base, base + 1, base + 2], [base, base + 1, base + 3]]
    return torch.tensor(rows, dtype=torch.int64, device=embeddings.weight.device) % vocab


def _is_causal(states: Tensor) -> bool:
    """Whether positions 0 and 1 of the two probe rows agree although their last tokens differ; states (2, 3, d)."""
    first, second = states[0, :2], states[1, :2]
    leak = (first - second).abs().max()
    return not bool(leak > 1e-5 * first.abs().max().clamp_min(1e-12))


class _Trace:
    """Records block outputs and the norm that receives the last of them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.outputs: list[Tensor] = []
        self.final_norm: nn.Module | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        inside = {id(part) for block in self.stack.blocks for part in block.modules()}
        handles = [block.register_forward_hook(self._on_block) for block in self.stack.blocks]
        for part in self.stack.module.modules():
            if id(part) not in inside and "norm" in type(part).__name__.lower():
                handles.append(part.register_forward_pre_hook(self._on_norm))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_block(self, module: nn.Module, args: Any, output: Any) -> None:
        self.outputs.append(first_tensor(output))

    def _on_norm(self, module: nn.Module, args: Any) -> None:
        follows = len(self.outputs) == self.stack.n_layer and args and args[0] is self.outputs[-1]
        if follows and self.final_norm is None:
            self.final_norm = module


def _descend(module: nn.Module, path: str) -> nn.Module | None:
    current: nn.Module | None = module
    for part in path.split("."):
        is_index = part.lstrip("-").isdigit()
        if is_index and isinstance(current, nn.ModuleList):
            current = current[int(part)]
        else:
            current = None if is_index else getattr(current, part, None)
        if not isinstance(current, nn.Module):
            return None
    return current
