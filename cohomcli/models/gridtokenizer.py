"""The tokenizer of a grid model: every character of a text grid is a token, so every command reads grids as texts."""

from __future__ import annotations

from typing import Any

UNKNOWN = "?"


def grid_tokenizer(symbols: str) -> Any:
    """A transformers tokenizer: `symbols[i]` is token i, `?` the token len(symbols), which also pads.

    Line breaks, spaces and a first line `label: NAME` are not read: rows follow each other as `NonLinearTransformer`
    writes texts into its grid, provided that they are as wide as the grid.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: at for at, symbol in enumerate(symbols)} | {UNKNOWN: len(symbols)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    label, space = normalizers.Replace(Regex(r"\Alabel:.*"), ""), normalizers.Replace(Regex(r"\s"), "")
    tokenizer.normalizer = normalizers.Sequence([label, space])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=UNKNOWN, unk_token=UNKNOWN, pad_token=UNKNOWN)
