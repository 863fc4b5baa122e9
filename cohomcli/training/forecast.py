"""How much memory a training step takes, from the sizes alone."""

from __future__ import annotations

from typing import Any

from cohomcli.models.memory import mlp_width
from cohomcli.training.options import TrainOptions

_FLOAT = 4
# Values that the backward pass of a block keeps, measured on GPT-2 (torch 2.13, CPU): per token and feature outside the
# MLP, per token, head and earlier token of the attention scores, and per token and feature of the MLP's width.
_PER_FEATURE, _PER_SCORE = 16, 6
_PER_WIDTH = {"gelu_new": 5, "gelu_fast": 5, "quick_gelu": 3, "silu": 4, "swish": 4}  # written out in steps, or gated
_PER_WIDTH_FUSED = 2
_LOGITS = 3  # logits, their log-softmax and its gradient


def forecast_bytes(model: Any, options: TrainOptions, length: int) -> int:
    """The peak of one step, in bytes, beside the loaded code: the model's weights are in it.

    Weights, gradients and AdamW's two moments take 16 bytes a parameter, averaged and best weights 4 each. Activations
    of a block follow Korthikanti et al. 2022 (arXiv:2205.05198, eq. 2): a multiple of tokens * width, and one of the
    attention scores; the multiples are larger here, as nothing is fused. With gradient checkpointing the inputs of all
    blocks are kept, and one block with its gradients.
    """
    config = model.config.get_text_config()
    n_parameters = sum(p.numel() for p in model.parameters())
    copies = 4 + (options.ema_decay > 0) + (options.patience > 0)
    tokens = options.batch_size * length
    heads, blocks, hidden = config.num_attention_heads, config.num_hidden_layers, config.hidden_size
    activation = str(getattr(config, "activation_function", getattr(config, "hidden_act", "")))
    inside = _PER_WIDTH.get(activation, _PER_WIDTH_FUSED) * mlp_width(config)
    block = _FLOAT * tokens * (_PER_FEATURE * hidden + inside + _PER_SCORE * heads * length)
    kept = blocks * block
    if options.gradient_checkpointing:
        kept = blocks * tokens * hidden * _FLOAT + 2 * block
    return int(copies * _FLOAT * n_parameters + kept + _LOGITS * _FLOAT * tokens * config.vocab_size)
