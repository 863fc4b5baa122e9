"""How much memory a training step takes, from the sizes alone."""

from __future__ import annotations

from typing import Any

from cohomcli.training.options import TrainOptions

_FLOAT = 4
_BYTES_PER_VALUE = 34 * 2  # activations of a block per token and feature in float32
_BYTES_PER_SCORE = 5 * 2  # attention scores, per head and pair of tokens, where they are kept


def forecast_bytes(model: Any, options: TrainOptions, length: int) -> int:
    """Upper estimate of the peak of one step, in bytes, beyond what was loaded.

    Weights, gradients and AdamW's two moments take 16 bytes a parameter, averaged and best weights 4 each. Activations
    of a block: 34 s b h + 5 a s^2 b bytes in half precision (Korthikanti et al. 2022, arXiv:2205.05198, eq. 2), twice
    that in float32; with gradient checkpointing the inputs of all blocks and one block whole. Logits and their
    gradient: 3 copies.
    """
    config = model.config.get_text_config()
    n_parameters = sum(p.numel() for p in model.parameters())
    copies = 4 + (options.ema_decay > 0) + (options.patience > 0)
    tokens = options.batch_size * length
    heads, blocks = config.num_attention_heads, config.num_hidden_layers
    block = tokens * (_BYTES_PER_VALUE * config.hidden_size + _BYTES_PER_SCORE * heads * length)
    kept = blocks * block
    if options.gradient_checkpointing:
        kept = blocks * tokens * config.hidden_size * _FLOAT + block
    return int(copies * _FLOAT * n_parameters + kept + 3 * _FLOAT * tokens * config.vocab_size)
