"""Measure the built models against n-gram baselines and write the card (card.json, README.md) and SHA256SUMS."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from cohomcli.assets import BUILTIN_MODELS
from cohomcli.assets.build_corpus import REQUIREMENT, SHIPPED_TRAIN, Splits, texts
from cohomcli.assets.build_models import BLOCK, EVAL_MASK_RATE, EVAL_MASK_SEED, evaluate, evaluation_spots

TRAIN_STRIDE = 13  # the train loss is measured on every 13th train passage
SAMPLE_STRIDE = 20  # the spot check in the tests uses every 20th held-out passage
NOT_ASSETS = {".py", ".pyc", ".in"}

Pairs = tuple[Tensor, Tensor]  # previous tokens and tokens, both (n,) int64


def write_card(splits: Splits, folder: Path) -> None:
    """Write card.json with every figure, README.md made from it, and SHA256SUMS over all assets."""
    card = {
        "source": REQUIREMENT,
        "evaluation": {"mask_rate": EVAL_MASK_RATE, "mask_seed": EVAL_MASK_SEED, "sample_stride": SAMPLE_STRIDE},
        "splits": {split: _describe(splits, split) for split in ("train", "calibration", "heldout")},
        "shipped_train": list(SHIPPED_TRAIN),
        "models": {name: measure(splits, folder / "models" / name) for name in BUILTIN_MODELS},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render(card), encoding="utf-8")
    write_checksums(folder)


def _describe(splits: Splits, split: str) -> dict[str, Any]:
    packed = texts(splits, split)
    return {"works": list(splits[split]), "passages": len(packed), "characters": sum(map(len, packed))}


def measure(splits: Splits, folder: Path) -> dict[str, Any]:
    """Return how the model in `folder` was trained and its losses in nats per token, with the baselines'."""
    loader = AutoModelForCausalLM if folder.name == "tiny-gpt" else AutoModelForMaskedLM
    model, tokenizer = loader.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    heldout = texts(splits, "heldout")
    bigram = Bigram(all_pairs(tokenizer, texts(splits, "train")), len(tokenizer))
    calibration_pairs = asked_pairs(tokenizer, texts(splits, "calibration"))
    discount = min((step / 20 for step in range(1, 20)), key=lambda step: bigram.loss(calibration_pairs, step))
    heldout_pairs = asked_pairs(tokenizer, heldout)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return {
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": training,
        "kept_step": min(training["history"], key=lambda entry: entry["calibration"])["step"],
        "loss": {
            "train": evaluate(model, tokenizer, texts(splits, "train")[::TRAIN_STRIDE]),
            "calibration": evaluate(model, tokenizer, texts(splits, "calibration")),
            "heldout": evaluate(model, tokenizer, heldout),
            "heldout_sample": evaluate(model, tokenizer, heldout[::SAMPLE_STRIDE]),
        },
        "baseline": {
            "unigram": bigram.unigram_loss(heldout_pairs),
            "bigram": bigram.loss(heldout_pairs, discount),
            "discount": discount,
        },
    }


class Bigram:
    """A bigram model with absolute discounting, interpolated with an add-one unigram (Ney, Essen and Kneser 1994).

    p(b | a) = max(c(ab) - D, 0) / c(a) + D n(a) / c(a) p(b), where n(a) counts the distinct successors of a.
    """

    def __init__(self, pairs: Pairs, vocab: int) -> None:
        """Count the pairs."""
        before, after = pairs
        counts = torch.bincount(before * vocab + after, minlength=vocab * vocab).view(vocab, vocab)
        self.counts = counts
        self.total, self.kinds = counts.sum(dim=1), (counts > 0).sum(dim=1)
        self.unigram = (counts.sum(dim=0) + 1) / (counts.sum() + vocab)

    def probability(self, before: Tensor, after: Tensor, discount: float) -> Tensor:
        """Return p(after | before), elementwise; after a token without known successor it is the unigram's."""
        seen = self.total[before].clamp(min=1)
        weight = torch.where(self.total[before] > 0, discount * self.kinds[before] / seen, 1.0)
        return (self.counts[before, after] - discount).clamp(min=0) / seen + weight * self.unigram[after]

    def loss(self, pairs: Pairs, discount: float) -> float:
        """Return the mean loss in nats per token."""
        return -self.probability(*pairs, discount).log().mean().item()

    def unigram_loss(self, pairs: Pairs) -> float:
        """Return the mean loss in nats per token of the unigram alone."""
        return -self.unigram[pairs[1]].log().mean().item()


def all_pairs(tokenizer: Any, passages: list[str]) -> Pairs:
    """Return the pairs within the passages; [CLS] precedes the first token, but nothing predicts [SEP]."""
    return _join(_content(tokenizer, ids) for ids in _encode(tokenizer, passages))


def asked_pairs(tokenizer: Any, passages: list[str]) -> Pairs:
    """Return the pairs whose second token `evaluate` asks the model for.

    For the masked model the first token is the true left neighbour, even where the model sees [MASK].
    """
    if tokenizer.mask_token_id is None:
        return all_pairs(tokenizer, passages)
    contents = (_content(tokenizer, ids) for ids in _encode(tokenizer, passages))
    spots = ((before, after, evaluation_spots(after.tolist())) for before, after in contents)
    return _join((before[chosen], after[chosen]) for before, after, chosen in spots)


def _encode(tokenizer: Any, passages: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(passages, truncation=True, max_length=BLOCK)["input_ids"]
    return ids


def _content(tokenizer: Any, ids: list[int]) -> Pairs:
    end = len(ids) - (tokenizer.sep_token_id is not None)
    return torch.tensor(ids[: end - 1]), torch.tensor(ids[1:end])


def _join(parts: Iterable[Pairs]) -> Pairs:
    before, after = zip(*parts, strict=True)
    return torch.cat(before), torch.cat(after)


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS over every asset below `folder`; `sha256sum -c SHA256SUMS` checks it there."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix not in NOT_ASSETS]
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
        if path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def render(card: dict[str, Any]) -> str:
    """Return the card as Markdown."""
    template = (Path(__file__).parent / "card.md.in").read_text(encoding="utf-8")
    splits = "\n".join(_split_row(split, part) for split, part in card["splits"].items())
    models, losses, trainings = ("\n".join(rows) for rows in zip(*map(_rows, card["models"].items()), strict=True))
    return template.format(
        splits=splits,
        shipped=", ".join(card["shipped_train"]),
        models=models,
        losses=losses,
        trainings=trainings,
        train_stride=TRAIN_STRIDE,
        mask_seed=EVAL_MASK_SEED,
        mask_percent=f"{EVAL_MASK_RATE:.0%}",
        train_mask_percent=f"{card['models']['tiny-bert']['training']['mask_rate']:.0%}",
    )


def _split_row(split: str, part: dict[str, Any]) -> str:
    works = ", ".join(part["works"])
    return f"| {split} | {len(part['works'])} | {part['passages']:,} | {part['characters']:,} | {works} |"


def _rows(item: tuple[str, dict[str, Any]]) -> tuple[str, str, str]:
    """Return the model's rows for the tables of sizes, losses and training."""
    name, figures = item
    recipe, loss, baseline = figures["training"], figures["loss"], figures["baseline"]
    cells = [loss["train"], loss["calibration"], loss["heldout"], baseline["bigram"], baseline["unigram"]]
    return (
        f"| `{name}` | {figures['architecture']} | {figures['parameters']:,} |",
        f"| `{name}` | " + " | ".join(f"{nats:.3f} ({math.exp(nats):.1f})" for nats in cells) + " |",
        f"| `{name}` | {recipe['seed']} | {recipe['steps']:,} | {figures['kept_step']:,} | {recipe['tokens_seen']:,} | "
        f"{recipe['seconds']:,} | {recipe['learning_rate']} | {recipe['batch_tokens']:,} |",
    )
