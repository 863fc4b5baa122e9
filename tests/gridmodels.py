"""A small untrained model of grids, saved as `cohom train --objective grid` saves one."""

from __future__ import annotations

from pathlib import Path

import torch

from cohomcli.models.gridtokenizer import grid_tokenizer
from cohomcli.nn import NonLinearTransformer


def save_grid_model(folder: Path, symbols: str = "0123", side: int = 8) -> Path:
    """Ten classes named 0 to 9, square grids of `side` cells, width 16, two blocks."""
    torch.manual_seed(0)
    NonLinearTransformer(
        vocab_size=len(symbols) + 1, mask_token_id=len(symbols), symbols=symbols, class_names=list("0123456789"),
        dim=16, depth=2, heads=2, window_size=1, matrix_dim=side,
    ).save_pretrained(folder)  # fmt: skip
    grid_tokenizer(symbols).save_pretrained(folder)
    return folder
