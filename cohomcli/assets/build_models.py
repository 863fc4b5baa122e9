"""Train the tokenizers and the two small models, tiny-gpt (causal) and tiny-bert (masked)."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from cohomcli.permissions import open_up

VOCAB = 2048
BLOCK = 256  # positions of both models
SHAPE = {"layers": 6, "width": 96, "heads": 6}
INITIAL_STD = 0.05  # 0.02 suits a width of 768; the same output variance at 96 asks for about 0.057
DROPOUT = 0.0  # a handful of epochs with 0.9 million weights does not overfit
IGNORE = -100  # label of a position without loss
EVAL_MASK_RATE = 0.15
EVAL_MASK_SEED = 1234


@dataclass(frozen=True)
class Recipe:
    """How one model is trained; one step sees about `batch_tokens` tokens."""

    steps: int
    learning_rate: float
    mask_rate: float = 0.0  # share of tokens hidden; 0 for the causal model
    batch_tokens: int = 1024
    warmup: int = 200
    weight_decay: float = 0.1
    evaluate_every: int = 250
    seed: int = 1623  # the year of the First Folio


RECIPES = {
    "tiny-gpt": Recipe(steps=3000, learning_rate=3e-3),
    "tiny-bert": Recipe(steps=3500, learning_rate=2e-3, mask_rate=0.2),
}


def use_threads(count: int) -> None:
    """Set the number of torch threads; sums, and with them the weights, depend on it in the last bits."""
    torch.set_num_threads(count)


# ---- tokenizers -------------------------------------------------------------------------------------------------


def train_tokenizer(name: str, texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of VOCAB tokens: every text can be written, none is unknown."""
    special = ["<|endoftext|>"] if name == "tiny-gpt" else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet)
    )
    common = {"tokenizer_object": bpe, "model_max_length": BLOCK, "clean_up_tokenization_spaces": False}
    if name == "tiny-gpt":
        return PreTrainedTokenizerFast(bos_token=special[0], eos_token=special[0], pad_token=special[0], **common)
    pieces = [(token, bpe.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    bpe.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=pieces
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(**dict(zip(names, special, strict=True)), **common)


# ---- models -----------------------------------------------------------------------------------------------------


def new_model(name: str, tokenizer: Any) -> Any:
    """Return an untrained model; the embedding and the output layer share their weights."""
    if name == "tiny-gpt":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCAB,
                n_positions=BLOCK,
                n_embd=SHAPE["width"],
                n_layer=SHAPE["layers"],
                n_head=SHAPE["heads"],
                activation_function="gelu_pytorch_tanh",  # gelu_new, fused
                initializer_range=INITIAL_STD,
                **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=VOCAB,
            max_position_embeddings=BLOCK,
            hidden_size=SHAPE["width"],
            num_hidden_layers=SHAPE["layers"],
            num_attention_heads=SHAPE["heads"],
            intermediate_size=4 * SHAPE["width"],
            hidden_dropout_prob=DROPOUT,
            attention_probs_dropout_prob=DROPOUT,
            initializer_range=INITIAL_STD,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    look_at_neighbours(bert)
    return bert


@torch.no_grad()
def look_at_neighbours(bert: Any) -> None:
    """Start positions as sinusoids and the heads of the first layer on the neighbours, 1 to 3 tokens to each side.

    From random attention tiny-bert was still at the unigram loss (6.17 nats) after 500 steps; from here it is at 5.02.
    A masked token says nothing until attention has found its neighbours, whereas a causal model has the bigram in its
    residual stream at once. Shifting a sinusoid is a rotation (Vaswani et al. 2017, section 3.5), so a
    query turned by k positions matches the key k away. Starting attention from a useful pattern: Trockman and Kolter
    2023, arXiv:2305.09828. Everything set here goes on learning.
    """
    embeddings, attention = bert.bert.embeddings, bert.bert.encoder.layer[0].attention.self
    size = SHAPE["width"] // SHAPE["heads"]
    frequencies = 2.5 * 125.0 ** -torch.linspace(0, 1, size // 2)  # periods of 2.5 to 314 tokens
    angles = torch.arange(BLOCK)[:, None] * frequencies
    # Position and token start in different coordinates: the first `size` are for positions.
    embeddings.word_embeddings.weight[:, :size] = 0
    embeddings.token_type_embeddings.weight.zero_()
    embeddings.position_embeddings.weight.zero_()
    embeddings.position_embeddings.weight[:, :size] = 2**0.5 * INITIAL_STD * torch.cat([angles.cos(), angles.sin()], 1)
    attention.query.weight.zero_()
    attention.key.weight.zero_()
    for head, shift in enumerate((-1, 1, -2, 2, -3, 3)):
        cos, sin = (shift * frequencies).cos().diag(), (shift * frequencies).sin().diag()
        rotation = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
        rows = slice(head * size, (head + 1) * size)
        # Gain 2 on both sides: about 5 nats between the neighbour and any other position.
        attention.query.weight[rows, :size] = 2 * rotation
        attention.key.weight[rows, :size] = 2 * torch.eye(size)


# ---- batches ----------------------------------------------------------------------------------------------------


class Batches:
    """Endless batches of token ids, half single passages from position 0, half windows of running text."""

    def __init__(self, passages: list[list[int]], tokenizer: Any, batch_tokens: int, seed: int) -> None:
        """Take passages as token ids without special tokens."""
        self.first = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
        self.last = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
        self.pad = tokenizer.pad_token_id
        self.batch_tokens = batch_tokens
        self.random = torch.Generator().manual_seed(seed)
        closed = [[*ids, self.last] for ids in passages]
        self.stream = torch.tensor([token for ids in closed for token in ids])
        self.by_length = sorted(([*self.first, *ids][:BLOCK] for ids in closed), key=len)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield token ids and attention mask, both (B, T) int64."""
        while True:
            yield self.whole_passages()
            yield self.windows()

    def draw(self, high: int, count: int = 1) -> Tensor:
        """Draw `count` integers below `high`."""
        return torch.randint(high, (count,), generator=self.random)

    def whole_passages(self) -> tuple[Tensor, Tensor]:
        """Take neighbours in length, so that little is padded."""
        start = int(self.draw(len(self.by_length)))
        count = max(1, self.batch_tokens // len(self.by_length[start]))
        return pad_batch(self.by_length[max(0, start - count) : start + 1], self.pad)

    def windows(self) -> tuple[Tensor, Tensor]:
        """Take windows of 128 or 256 tokens anywhere in the running text."""
        length = BLOCK // (1 + int(self.draw(2)))
        body = length - len(self.first)
        starts = self.draw(len(self.stream) - body, self.batch_tokens // length)
        ids = torch.stack([self.stream[start : start + body] for start in starts.tolist()])
        ids = torch.cat([torch.tensor(self.first, dtype=ids.dtype).expand(len(ids), -1), ids], dim=1)
        return ids, torch.ones_like(ids)


def pad_batch(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Pad rows on the right; return ids and attention mask, both (B, T) int64."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def hide(ids: Tensor, tokenizer: Any, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide tokens as BERT does (Devlin et al. 2019, section 3.1): 80% [MASK], 10% another token, 10% as they are.

    Returns the ids with tokens hidden and the labels, IGNORE where nothing is asked; both (B, T).
    """
    chosen = (torch.rand(ids.shape, generator=generator) < rate) & (ids >= len(tokenizer.all_special_ids))
    fate = torch.rand(ids.shape, generator=generator)
    other = torch.randint(len(tokenizer.all_special_ids), VOCAB, ids.shape, generator=generator)
    hidden = ids.masked_fill(chosen & (fate < 0.8), tokenizer.mask_token_id)
    hidden = torch.where(chosen & (fate >= 0.9), other, hidden)
    return hidden, ids.masked_fill(~chosen, IGNORE)


# ---- losses -----------------------------------------------------------------------------------------------------


def causal_loss(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    """Return the summed next-token loss in nats and the number of tokens."""
    hidden = model.transformer(ids, attention_mask=mask).last_hidden_state[:, :-1]
    asked = mask[:, 1:].bool()
    targets = ids[:, 1:][asked]
    return cross_entropy(model.lm_head(hidden[asked]), targets, reduction="sum"), len(targets)


def masked_loss(model: Any, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return the summed loss in nats at the labelled positions and their number; the head sees only those."""
    hidden = model.bert(ids, attention_mask=mask).last_hidden_state
    asked = labels != IGNORE
    return cross_entropy(model.cls(hidden[asked]), labels[asked], reduction="sum"), int(asked.sum())


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Return nats per token over single passages; the masked model is asked for [MASK]ed tokens only."""
    model.eval()
    passages = sorted(tokenizer(texts, truncation=True, max_length=BLOCK)["input_ids"], key=len)
    total, count = 0.0, 0
    for rows in (passages[i : i + 32] for i in range(0, len(passages), 32)):
        ids, mask = pad_batch(rows, tokenizer.pad_token_id)
        if tokenizer.mask_token_id is None:
            loss, tokens = causal_loss(model, ids, mask)
        else:
            labels = evaluation_labels(rows, ids)
            hidden = ids.masked_fill(labels != IGNORE, tokenizer.mask_token_id)
            loss, tokens = masked_loss(model, hidden, mask, labels)
        total, count = total + loss.item(), count + tokens
    return total / count


def evaluation_labels(rows: list[list[int]], ids: Tensor) -> Tensor:
    """Return the ids at the positions that evaluation hides, IGNORE elsewhere; (B, T) like the padded `ids`."""
    labels = torch.full_like(ids, IGNORE)
    for row, passage in enumerate(rows):
        spots = torch.tensor(evaluation_spots(passage[1:-1])) + 1  # between [CLS] and [SEP]
        labels[row, spots] = ids[row, spots]
    return labels


def evaluation_spots(passage: list[int]) -> list[int]:
    """Return the indices hidden in a passage (token ids without special tokens): EVAL_MASK_RATE of them, at least one.

    They depend on EVAL_MASK_SEED and the length alone: a passage is asked for the same tokens in any order and batch.
    """
    count = max(1, round(EVAL_MASK_RATE * len(passage)))
    return sorted(random.Random(EVAL_MASK_SEED + len(passage)).sample(range(len(passage)), count))


# ---- training ---------------------------------------------------------------------------------------------------


def learning_rate(recipe: Recipe, step: int) -> float:
    """Rise linearly over the warm-up, then fall along a cosine to a twentieth of the peak."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def new_optimizer(model: Any, recipe: Recipe) -> torch.optim.AdamW:
    """Decay matrices, not biases and norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def batch_loss(
    model: Any, tokenizer: Any, batch: tuple[Tensor, Tensor], mask_rate: float, masking: torch.Generator
) -> tuple[Tensor, int]:
    """Return the summed training loss of a batch (ids, mask) and the number of predicted tokens."""
    ids, mask = batch
    if mask_rate == 0:
        return causal_loss(model, ids, mask)
    hidden, labels = hide(ids, tokenizer, mask_rate, masking)
    return masked_loss(model, hidden, mask, labels)


def train(name: str, train_texts: list[str], calibration_texts: list[str], folder: Path) -> dict[str, Any]:
    """Train one model with the tokenizer in `folder`, keep the weights of the lowest calibration loss there.

    Returns the record that is also written to `training.json`: the recipe, tokens seen, seconds, loss history.
    """
    recipe = RECIPES[name]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    torch.manual_seed(recipe.seed)
    model = new_model(name, tokenizer)
    optimizer = new_optimizer(model, recipe)
    masking = torch.Generator().manual_seed(recipe.seed)
    passages = tokenizer(train_texts, add_special_tokens=False)["input_ids"]
    batches = iter(Batches(passages, tokenizer, recipe.batch_tokens, recipe.seed))
    best, seen, running, history, started = math.inf, 0, 0.0, [], time.perf_counter()
    for step in range(1, recipe.steps + 1):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step - 1)
        batch = next(batches)
        loss, tokens = batch_loss(model, tokenizer, batch, recipe.mask_rate, masking)
        torch.autograd.backward(loss / tokens)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += int(batch[1].sum())
        running += loss.item() / tokens
        if step % recipe.evaluate_every == 0:
            calibration = evaluate(model, tokenizer, calibration_texts[::7])
            seconds = round(time.perf_counter() - started)
            history.append({"step": step, "train": running / recipe.evaluate_every, "calibration": calibration})
            print(name, history[-1], f"{seconds} s", flush=True)
            running = 0.0
            if calibration < best:
                best = calibration
                model.save_pretrained(folder)
                open_up([folder / "model.safetensors"])
    record = {**asdict(recipe), "tokens_seen": seen, "seconds": seconds, "history": history}
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record
