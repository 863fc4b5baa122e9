"""A two-layer attention-only GPT-2 whose induction circuit is known because its weights were written by hand.

Head 1 of layer 0 attends to the previous token and copies it into a subspace of its own; head 2 of layer 1 looks there
for the current token and copies what stands at that place to the output. All other heads have small random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadedModel, LoadOptions

WORDS = (
    "apple", "river", "stone", "cloud", "paper", "glass", "wheel", "bread", "chair", "light", "horse", "tiger",
    "olive", "pearl", "sugar", "tower", "spoon", "knife", "lemon", "candle", "basket", "window",
)  # fmt: skip
VOCABULARY = ["<unk>", "The", *WORDS]
SIZE = len(VOCABULARY)  # also positions and channels of a head
HEADS, PREVIOUS, INDUCTION = 4, "layer_0.head_1", "layer_1.head_2"
TOKEN, POSITION, BEFORE = (slice(at * SIZE, (at + 1) * SIZE) for at in range(3))


def tokenizer() -> Any:
    """Words are tokens."""
    found = Tokenizer(models.WordLevel({word: at for at, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=found, unk_token="<unk>")


@torch.no_grad()
def model() -> Any:
    """The model, on the CPU, in eval mode."""
    torch.manual_seed(0)
    made = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=SIZE, n_positions=SIZE, n_embd=HEADS * SIZE, n_head=HEADS, n_layer=2, bos_token_id=None,
            eos_token_id=None, initializer_range=0.01,
        )
    ).eval()  # fmt: skip
    eye = torch.eye(SIZE)
    made.transformer.wte.weight.zero_()[:, TOKEN] = eye
    made.transformer.wpe.weight.zero_()[:, POSITION] = eye
    for block in made.transformer.h:
        for parameter in block.mlp.parameters():
            parameter.zero_()
    following = torch.roll(eye, 1, 1)  # position j to channel j + 1
    _head(made.transformer.h[0].attn, 1, (POSITION, 1.8 * eye), (POSITION, 1.8 * following), (BEFORE, 0.15))
    _head(made.transformer.h[1].attn, 2, (TOKEN, 2.0 * eye), (BEFORE, 2.0 * eye), (TOKEN, 0.5))
    return made


def _head(attn: Any, head: int, query: Any, key: Any, output: Any) -> None:
    width, channels = HEADS * SIZE, slice(head * SIZE, (head + 1) * SIZE)
    weight = attn.c_attn.weight  # (in, out): Conv1D
    for part, (read, matrix) in enumerate((query, key, (TOKEN, torch.eye(SIZE)))):
        columns = slice(part * width + channels.start, part * width + channels.stop)
        weight[:, columns] = 0
        weight[read, columns] = matrix
    attn.c_proj.weight[channels] = 0
    attn.c_proj.weight[channels, output[0]] = output[1] * torch.eye(SIZE)


def saved(folder: Path) -> Path:
    """The model and its tokenizer as a folder."""
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path) -> LoadedModel:
    """The same through the model door."""
    return load(resolve(str(saved(folder))), LoadOptions())
