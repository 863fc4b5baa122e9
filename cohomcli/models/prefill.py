"""CPU time of a forward pass: whether a smaller model really is faster."""

from __future__ import annotations

import time
from typing import Any

import torch

from cohomcli.models.calls import uncached

LENGTH, REPEATS = 512, 5


@torch.inference_mode()
def prefill_seconds(model: Any, length: int = LENGTH, repeats: int = REPEATS) -> float:
    """CPU seconds, over all threads, of one pass of the body (no head) over `length` tokens, or as many as there are
    positions; the least of `repeats`.
    """
    body = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    length = min(length, getattr(text, "max_position_embeddings", None) or length)
    ids = (torch.arange(length)[None] % text.vocab_size).to(next(model.parameters()).device)
    options = uncached(body)
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        body(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        found.append(time.process_time() - begun)
    return min(found)
