"""Hidden states of calibration data in memory-mapped files, one a batch: memory holds one batch at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Shelf:
    """Tensors by name and batch in `folder`, stored as float32.

    A mapping is private: what a caller does to a tensor it got does not reach the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, batch: int, tensor: Tensor) -> None:
        """Store `tensor` of any shape in place of what was there."""
        path = self._path(name, batch)
        path.unlink(missing_ok=True)  # a mapping that is still in use keeps the old file
        np.save(path, tensor.detach().cpu().float().numpy())

    def get(self, name: str, batch: int) -> Tensor:
        """The tensor, paged in as it is read; float32 on the CPU."""
        return torch.from_numpy(np.load(self._path(name, batch), mmap_mode="c"))

    def has(self, name: str, batch: int) -> bool:
        """Whether there is such a tensor."""
        return self._path(name, batch).exists()

    def move(self, old: str, new: str, batch: int) -> None:
        """Give what is called `old` the name `new`."""
        self._path(old, batch).replace(self._path(new, batch))

    def drop(self, name: str, batch: int) -> None:
        """Forget a tensor."""
        self._path(name, batch).unlink(missing_ok=True)

    def _path(self, name: str, batch: int) -> Path:
        return self.folder / f"{name}.{batch}.npy"
