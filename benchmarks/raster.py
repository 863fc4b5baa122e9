"""A one-dimensional autoregressive model of grids, to compare with: GPT-2 over the cells row by row, class first."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from cohomcli.training.data import Order

CLASSES, BATCH, RATE, WARM_UP, CLASS_DROPOUT = 10, 64, 3e-3, 50, 0.1


class RasterModel:
    """GPT-2 of three layers of width 64 over (class, cells); ids 0 .. levels - 1 are cells, then classes, then none."""

    def __init__(self, levels: int, n_cells: int) -> None:
        torch.manual_seed(0)
        self.levels, self.n_cells = levels, n_cells
        self.no_class = levels + CLASSES
        config = GPT2Config(
            vocab_size=levels + CLASSES + 1, n_positions=n_cells + 1, n_embd=64, n_layer=3, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        self.model: Any = GPT2LMHeadModel(config)

    @property
    def n_parameters(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.model.parameters())

    def train(self, cells: NDArray[np.int64], classes: NDArray[np.int64], seconds: float) -> int:
        """Train for so many CPU seconds with the cosine schedule over that time; the number of steps."""
        rows = torch.from_numpy(cells.reshape(len(cells), -1))
        named = torch.from_numpy(classes) + self.levels
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
        order, generator = Order(len(rows), 0), torch.Generator().manual_seed(0)
        self.model.train()
        begun, step = time.process_time(), 0
        while (share := (time.process_time() - begun) / seconds) < 1:
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (0.05 + 0.475 * (1 + math.cos(math.pi * share)))
            at = order.indices(step * BATCH, BATCH)
            dropped = torch.rand(BATCH, generator=generator) < CLASS_DROPOUT
            ids = torch.cat([named[at].masked_fill(dropped, self.no_class)[:, None], rows[at]], dim=1)
            loss = cross_entropy(self.model(input_ids=ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            step += 1
        self.model.eval()
        return step

    @torch.no_grad()
    def complete(self, cells: NDArray[np.int64], hidden: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Hidden cells in raster order, each the likeliest value given those before it; known cells are put in."""
        rows = torch.from_numpy(cells.reshape(len(cells), -1)).clone()
        unknown = torch.from_numpy(hidden.reshape(len(cells), -1))
        token: Tensor = torch.full((len(rows), 1), self.no_class)
        past: Any = None
        for at in range(self.n_cells):
            out = self.model(input_ids=token, past_key_values=past, use_cache=True)
            past, guess = out.past_key_values, out.logits[:, -1, : self.levels].argmax(-1)
            rows[:, at] = torch.where(unknown[:, at], guess, rows[:, at])
            token = rows[:, at : at + 1]
        return rows.view(cells.shape).numpy()
