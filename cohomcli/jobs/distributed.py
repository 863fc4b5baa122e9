"""One process of several: who is the first, and how it tells the others where the run lies."""

from __future__ import annotations

import os
from typing import Any


def world_size() -> int:
    """Processes of this launch (`torchrun`, `accelerate launch`); 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def share(value: str | None) -> str:
    """The main process's `value`, on every process."""
    if world_size() == 1:
        return value or ""
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())
    values: list[Any] = broadcast_object_list([value])
    return str(values[0])


def facts() -> dict[str, int]:
    """What the manifest says of the launch."""
    return {"processes": world_size()}
