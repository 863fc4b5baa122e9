"""The parts of any transformer: its stack(s) of blocks and the attention and MLP inside a block.

The block list is found structurally: a `ModuleList` as long as the configuration says. `probe.py` confirms it by
running the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.calls import uncached

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
    """The stacks of a model: one, or an encoder and a decoder.

    `sees_padding` says that padding changes a text's own vectors in spite of the mask, so that only texts of equal
    length may share a batch (convolutions, Fourier mixing).
    """

    stacks: tuple[Stack, ...]
    sees_padding: bool = False

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether there are two stacks."""
        return len(self.stacks) == 2

    @property
    def n_layer(self) -> int:
        """Blocks of all stacks together."""
        return sum(stack.n_layer for stack in self.stacks)


def find_stacks(model: nn.Module) -> Layout:
    """The layout as far as the module tree tells: all that can be known of a model on the meta device.

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


def vocabulary(model: nn.Module) -> int:
    """Rows of the table of input embeddings.

    Raises:
        InputRefused: the model has none, so it does not read text.
    """
    model_: Any = model
    try:
        rows = model_.get_input_embeddings().weight.shape
    except (AttributeError, NotImplementedError) as error:
        raise InputRefused(
            f"{type(model).__name__} has no token embeddings", "only language models are read"
        ) from error
    if len(rows) != 2:
        raise InputRefused(f"{type(model).__name__} has no token embeddings", "only language models are read")
    return int(rows[0])


def run_stack(stack: Stack, ids: Tensor, mask: Tensor, encoded: Tensor | None, encoded_mask: Tensor) -> Tensor:
    """Run one stack; returns its last hidden state (B, T, d), after the final norm and any output projection.

    `ids` and `mask` are (B, T) int64, padded on the right. A decoder of an encoder-decoder attends to `encoded`.
    """
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **uncached(stack.module)}
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
