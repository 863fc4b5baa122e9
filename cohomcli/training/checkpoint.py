"""Checkpoints: a folder that `from_pretrained` loads, with the trainer's state beside it, written whole or not at all.

    step-000100/  config.json, model.safetensors, tokenizer files          the model
                  trainer/state.json                                       step, history, data position
                  trainer/optimizer.safetensors                            moments
                  trainer/ema.safetensors, trainer/best.safetensors        averaged and best weights, where kept
                  trainer/random-0.safetensors ...                         one per process

Nothing is pickled, so reading a checkpoint runs nothing. A folder appears under its name only when every byte of it is
on disk; a run that is killed in the middle of a save leaves a `.step-...` folder that the next save removes.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cohomcli.errors import InputRefused
from cohomcli.permissions import open_up

SCHEMA = "cohom.trainer/1"
STATE = "trainer/state.json"
OPTIMIZER = "trainer/optimizer.safetensors"
COPIES = ("ema", "best")
_SEQUENCE = "sequence-"  # prefix of what ExactSequenceOptimizer keeps of its sequences of maps
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Saved:
    """A checkpoint read back: `state` as it was given, the optimizer's state dict, copies of the weights by name."""

    step: int
    state: dict[str, Any]
    optimizer: dict[str, Any]
    copies: dict[str, dict[str, Tensor]]
    folder: Path


def checkpoints(parent: Path) -> list[Path]:
    """The complete checkpoints in `parent`, oldest first."""
    found = [(int(match[1]), path) for path in parent.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def staging(parent: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it is complete; what lay there is removed by `begin`."""
    return parent / f".step-{step:06d}"


def begin(parent: Path, step: int) -> Path:
    """An empty staging folder, and no leftovers of saves that were killed."""
    for leftover in parent.glob(".step-*"):
        shutil.rmtree(leftover)
    stage = staging(parent, step)
    (stage / "trainer").mkdir(parents=True)
    return stage


def write(
    stage: Path,
    save_model: Callable[[Path], None],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    copies: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Fill the staging folder: `save_model` writes the model, the rest is ours. `state` is JSON."""
    save_model(stage)
    tensors, plain = _flatten(optimizer)
    save_file(tensors, stage / OPTIMIZER)
    for kind, weights in copies.items():
        save_file({name: value.contiguous() for name, value in weights.items()}, stage / f"trainer/{kind}.safetensors")
    document = {"schema": SCHEMA, "state": dict(state), "optimizer": plain}
    (stage / STATE).write_text(json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n")


def publish(stage: Path, keep: int) -> Path:
    """Flush the staging folder to disk, rename it into view and remove all but the newest `keep` checkpoints."""
    files = [path for path in stage.rglob("*") if path.is_file()]
    open_up(files)
    for path in files:
        _flush(path)
    target = stage.with_name(stage.name.removeprefix("."))
    if target.exists():  # a resumed run that saves a step again
        shutil.rmtree(target)
    stage.rename(target)
    _flush(target.parent)
    for old in checkpoints(target.parent)[:-keep]:
        shutil.rmtree(old)
    return target


def read(folder: Path) -> Saved:
    """Read the trainer's part of a checkpoint.

    Raises:
        InputRefused: a file is missing or damaged, or of another version.
    """
    try:
        document = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise InputRefused(f"checkpoint {str(folder)!r} has schema {document['schema']!r}, not {SCHEMA!r}")
        paths = {kind: folder / f"trainer/{kind}.safetensors" for kind in COPIES}
        copies = {kind: load_file(path) for kind, path in paths.items() if path.exists()}
        optimizer = _unflatten(load_file(folder / OPTIMIZER), document["optimizer"])
        return Saved(int(document["state"]["step"]), document["state"], optimizer, copies, folder)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputRefused(
            f"checkpoint {str(folder)!r} is damaged: {error}", "resume from an older one, or start again"
        ) from error


def save_random(stage: Path, rank: int) -> None:
    """The state of every random generator of process `rank`."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda-{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    facts = {"python": [version, gauss], "numpy": [kind, position, has_gauss, cached]}
    save_file(tensors, stage / f"trainer/random-{rank}.safetensors", metadata={"plain": json.dumps(facts)})


def restore_random(folder: Path, rank: int) -> None:
    """Bring the generators back to where `save_random` saw them.

    Raises:
        InputRefused: the checkpoint was written by fewer processes, or the file is damaged.
    """
    from safetensors import safe_open

    path = folder / f"trainer/random-{rank}.safetensors"
    if not path.exists():
        raise InputRefused(
            f"checkpoint {str(folder)!r} was written by fewer processes", "resume with as many as it was trained with"
        )
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as opened:
            facts = json.loads(opened.metadata()["plain"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputRefused(f"{str(path)!r} is damaged: {error}", "resume from an older checkpoint") from error
    torch.set_rng_state(tensors["torch"])
    version, gauss = facts["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, position, has_gauss, cached = facts["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    if torch.cuda.is_available():
        states = [tensors[f"cuda-{i}"] for i in range(torch.cuda.device_count()) if f"cuda-{i}" in tensors]
        torch.cuda.set_rng_state_all(states)


def _flatten(optimizer: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state dict as named tensors and JSON; nested state is not supported by torch's optimizers."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{key}"] = value.detach().clone().contiguous()
            else:
                plain.setdefault(str(index), {})[key] = value
    kept = optimizer.get("sequences", ())
    for index, entries in enumerate(kept):
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{_SEQUENCE}{index}/{key}"] = value.detach().clone().contiguous()
    sequences = [{k: None if isinstance(v, Tensor) else v for k, v in entries.items()} for entries in kept]
    document = {"plain": plain, "groups": optimizer["param_groups"]}
    return tensors, document | ({"sequences": sequences} if sequences else {})


def _unflatten(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in document["plain"].items()}
    sequences = [dict(entries) for entries in document.get("sequences", ())]
    for name, value in tensors.items():
        index, _, key = name.removeprefix(_SEQUENCE).partition("/")
        if name.startswith(_SEQUENCE):
            sequences[int(index)][key] = value
        else:
            state.setdefault(int(index), {})[key] = value
    return {"state": state, "param_groups": document["groups"]} | ({"sequences": sequences} if sequences else {})


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
