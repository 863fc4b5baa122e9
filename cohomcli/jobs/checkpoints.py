"""Checkpoints of one model, found in a folder by their step or named as revisions, in the order of training."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cohomcli.errors import InputRefused, UsageError

logger = logging.getLogger(__name__)
# checkpoint-100, step_200, global_step300, ckpt-4, epoch=5, iter-0006000, 700
_STEP = re.compile(r"(?:[A-Za-z][A-Za-z_.-]*?)?[-_=.]?(\d{1,15})")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".pt2", ".npz")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model", "tokenizer.model")
MOST = 200


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: what `--model` would take, the revision of a hub model, and the name in reports ("": its own)."""

    reference: str
    revision: str | None = None
    label: str = ""


def find_checkpoints(place: str, revisions: Sequence[str] = ()) -> list[Checkpoint]:
    """The checkpoints in the folder `place` by ascending step, or the `revisions` of the model `place`, as given.

    A checkpoint is a subfolder with weights, or a weights file, whose name ends with a number. Others are skipped with
    a warning.

    Raises:
        InputRefused: no such folder, or fewer than two checkpoints in it.
        UsageError: revisions of a folder, or a model without revisions.
    """
    folder = Path(place).expanduser()
    if revisions:
        if folder.is_dir():
            raise UsageError("--revisions name revisions of a hub model, not of a folder", "leave one of them out")
        return [Checkpoint(place, revision, f"{Path(place).name}@{revision}") for revision in dict.fromkeys(revisions)]
    if not folder.is_dir():
        hint = "give a folder, or a hub model with --revisions"
        raise InputRefused(f"no folder of checkpoints {place!r}", hint)
    steps: list[tuple[int, str, Path]] = []
    for path in sorted(folder.iterdir()):
        if not _holds_weights(path):
            continue
        match = _STEP.fullmatch(path.stem if path.is_file() else path.name)
        if match is None:
            logger.warning("%s is left out: its name does not end with a step", path.name)
            continue
        steps.append((int(match[1]), path.name, path))
    if not 2 <= len(steps) <= MOST:
        wanted = "two checkpoints or more" if len(steps) < 2 else f"at most {MOST} checkpoints"
        raise InputRefused(
            f"{place!r} holds {len(steps)} checkpoints with a step in their name; {wanted} are needed",
            "subfolders such as checkpoint-100 or step_200 with a model's weights, or weights files",
        )
    return [Checkpoint(str(path)) for _, _, path in sorted(steps)]


def _holds_weights(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_file():
        return path.suffix in _WEIGHTS
    return path.is_dir() and any(inner.suffix in _WEIGHTS or inner.name == "config.json" for inner in path.iterdir())


def is_collection(place: str) -> bool:
    """Whether `place` is a folder of models, and neither a run nor a model itself."""
    folder = Path(place).expanduser()
    return (
        folder.is_dir()
        and not (folder / "results.json").is_file()
        and not (folder / "config.json").is_file()
        and any(_STEP.fullmatch(inner.name) and _holds_weights(inner) for inner in folder.iterdir() if inner.is_dir())
    )


def shared_tokenizer(place: str, checkpoints: Sequence[Checkpoint]) -> str | None:
    """The folder itself, when it holds the tokenizer that its checkpoints lack."""
    folder = Path(place).expanduser()
    has = any((folder / name).is_file() for name in _TOKENIZER)
    lacking = all(not (Path(one.reference) / name).is_file() for one in checkpoints for name in _TOKENIZER)
    return str(folder) if has and lacking and folder.is_dir() else None
