"""The built-in models and corpus: where they lie, and whether they are as they were built."""

import hashlib
from pathlib import Path

BUILTIN_MODELS: tuple[str, ...] = ("tiny-gpt", "tiny-bert")
SPLITS: tuple[str, ...] = ("train", "calibration", "heldout")


def root() -> Path:
    """Return the folder of the assets; it holds README.md, the card of everything in it."""
    return Path(__file__).parent


def model_dir(name: str) -> Path:
    """Return the folder of a built-in model, in Hugging Face layout; KeyError if `name` is none of BUILTIN_MODELS."""
    if name not in BUILTIN_MODELS:
        raise KeyError(name)
    return root() / "models" / name


def corpus_dir(split: str) -> Path:
    """Return the folder of a split: one UTF-8 file per play, passages parted by a blank line; KeyError if unknown."""
    if split not in SPLITS:
        raise KeyError(split)
    return root() / "corpus" / split


def verify() -> list[str]:
    """Return the assets, as listed in SHA256SUMS, that are missing or whose SHA-256 differs."""
    wrong = []
    for line in (root() / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        expected, name = line.split("  ", 1)
        path = root() / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            wrong.append(name)
    return wrong
