"""Example inputs for a model: token ids of texts, tensors from a file, or seeded noise of a given shape.

A capture has fixed shapes, so all texts become calls of one (batch, length): longer ones are cut, shorter ones padded
with an attention mask, and what the mask hides counts in no error. A set of inputs is a list of calls.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.calls import uncached
from cohomcli.precision.capture import Example

# Names the file reader gives to tensors that have none.
_NAMELESS = ({"tensor"}, {"array"})


@dataclass(frozen=True)
class TextOptions:
    """`length` tokens per text, special tokens included, and `batch` texts per call."""

    length: int = 32
    batch: int = 1


def text_inputs(model: nn.Module, tokenizer: Any, texts: Sequence[str], options: TextOptions) -> list[Example]:
    """Calls of `model` with `input_ids` and `attention_mask` (batch, length) int64, one per `options.batch` texts.

    An encoder-decoder reads each text shifted right by its start token as decoder input. Caches are switched off, since
    a key-value cache is no result. Texts that do not fill a last batch are left out. Length: the longest text's, at
    most `options.length`.

    Raises:
        UsageError: fewer texts than one batch, or a length or batch below 1.
        InputRefused: a text without a single token.
    """
    if options.length < 1 or options.batch < 1:
        raise UsageError(f"length {options.length} and batch {options.batch} must be at least 1")
    if len(texts) < options.batch:
        hint = "give more texts or a smaller batch"
        raise UsageError(f"{len(texts)} texts do not fill a batch of {options.batch}", hint)
    rows = [tokenizer(text, truncation=True, max_length=options.length)["input_ids"] for text in texts]
    if empty := [text for text, ids in zip(texts, rows, strict=True) if not ids]:
        raise InputRefused(f"the text {empty[0][:40]!r} has no token", "leave it out")
    width = max(map(len, rows))
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    calls = []
    for start in range(0, len(rows) - options.batch + 1, options.batch):
        batch = rows[start : start + options.batch]
        ids = torch.tensor([[*row, *[padding] * (width - len(row))] for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
        calls.append(Example((), _arguments(model, ids, mask)))
    return calls


def _arguments(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    accepted = inspect.signature(model.forward).parameters
    found: dict[str, Any] = {"input_ids": ids}
    if "attention_mask" in accepted or not hasattr(model, "config"):
        found["attention_mask"] = mask
    if "decoder_input_ids" in accepted:
        start = getattr(model.config, "decoder_start_token_id", None)
        first = torch.full((len(ids), 1), int(ids[0, 0]) if start is None else int(start))
        found["decoder_input_ids"] = torch.cat([first, ids[:, :-1]], dim=1)
    return found | uncached(model)


def file_inputs(path: Path) -> Example:
    """One call from a file of tensors (torch `.pt`, `.npy`, `.npz`, safetensors), read without running anything in it.

    A dictionary's tensors become keyword arguments; a bare tensor or a list's become positional ones.

    Raises:
        InputRefused: missing, unreadable, unsafe, or without a tensor.
    """
    from cohomcli.models.files.read import read_model_file

    tensors = read_model_file(path).tensors
    if all(name.isdigit() for name in tensors):
        return Example(tuple(tensors[name] for name in sorted(tensors, key=int)))
    if set(tensors) in _NAMELESS:
        return Example(tuple(tensors.values()))
    return Example((), dict(tensors))


def shape_inputs(shape: str | Sequence[int], n: int = 1, seed: int = 0) -> list[Example]:
    """`n` calls with one float32 tensor of independent standard normal entries; `shape` as "1x3x224x224" or integers.

    Raises:
        UsageError: the shape is not a list of positive integers.
    """
    sizes = parse_shape(shape) if isinstance(shape, str) else tuple(shape)
    if not sizes or any(size < 1 for size in sizes):
        raise UsageError(f"input shape {shape!r} needs positive sizes", "for example 1x3x224x224")
    generator = torch.Generator().manual_seed(seed)
    return [Example((torch.randn(sizes, generator=generator),)) for _ in range(n)]


def parse_shape(text: str) -> tuple[int, ...]:
    """Sizes from "1x3x224x224" or "1,3,224,224".

    Raises:
        UsageError: anything else.
    """
    if not re.fullmatch(r"\d+([x,]\d+)*", text):
        raise UsageError(f"input shape {text!r} is no list of sizes", "for example 1x3x224x224")
    return tuple(int(size) for size in re.split("[x,]", text))
