"""Pooled activations in a run folder: what a later run is compared with, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cohomcli.errors import InputRefused
from cohomcli.runs.files import sha256_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "activations.safetensors"
AUTO_LIMIT = 256 * 2**20
Wish = Literal["auto", "always", "never"]


def wanted(wish: Wish, layers: Mapping[str, NDArray[Any]]) -> bool:
    """Whether activations are to be kept: "auto" keeps up to `AUTO_LIMIT` bytes (30 layers of 576 for 3,800 texts)."""
    return wish == "always" or (wish == "auto" and sum(x.nbytes for x in layers.values()) <= AUTO_LIMIT)


@dataclass(frozen=True)
class StoredActivations:
    """The activations in one entry's artifacts, float32 (n_texts, width) by layer; nothing is read before it is asked.

    `sha256` is the file's, as the entry recorded it.
    """

    path: Path
    sha256: str

    def check(self) -> None:
        """Compare the file with the hash that its entry recorded.

        Raises:
            InputRefused: another content, or unreadable.
        """
        try:
            found = sha256_file(self.path)
        except OSError as error:
            raise InputRefused(f"cannot read {str(self.path)!r}: {error.strerror}") from error
        if found != self.sha256:
            raise InputRefused(f"{str(self.path)!r} is not what its run wrote", "run the analysis again")

    def layer(self, name: str) -> NDArray[np.float32]:
        """One layer's activations.

        Raises:
            InputRefused: the layer is not there, or the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="np") as stored:
                found: NDArray[np.float32] = stored.get_tensor(name)
                return found
        except (SafetensorError, OSError) as error:
            raise InputRefused(f"{str(self.path)!r} is damaged: {error}", "run the analysis again") from error


def stored_activations(artifacts: Path, sha256: str) -> StoredActivations | None:
    """The activations among an entry's `artifacts`, None where they were not kept."""
    path = artifacts / FILE
    return StoredActivations(path, sha256) if sha256 and path.is_file() else None
