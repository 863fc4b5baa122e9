"""Write a model into safetensors files one after another, with the index that stock `from_pretrained` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cohomcli.models.quiet import quiet
from cohomcli.models.safetensors_header import read_header
from cohomcli.permissions import open_up

INDEX = "model.safetensors.index.json"


class ShardWriter:
    """Files model-00001-of-0000n.safetensors and so on in `folder`; the last one holds what belongs to no block."""

    def __init__(self, folder: Path, n_shards: int) -> None:
        self.folder, self.n_shards = folder, n_shards
        self.places: dict[str, str] = {}
        self.n_bytes = self.n_parameters = 0
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """The next file, with these tensors by their names in the whole model."""
        from safetensors.torch import save_file

        kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(kept, self._next(kept), metadata={"format": "pt"})

    def finish(self, model: Any) -> None:
        """The last file, with the parameters of `model` that are there, and its configuration; then the index."""
        outside = {name: value for name, value in model.state_dict().items() if not value.is_meta}
        aside = self.folder / "aside"  # in a folder with shards, save_pretrained removes them
        with quiet():
            model.save_pretrained(aside, state_dict=dict(outside))
        single = aside / "model.safetensors"
        written = {name: outside[name] for name in read_header(single)}
        single.replace(self._next(written))
        for path in aside.iterdir():
            path.replace(self.folder / path.name)
        aside.rmdir()
        index = {
            "metadata": {"total_parameters": self.n_parameters, "total_size": self.n_bytes},
            "weight_map": dict(sorted(self.places.items())),
        }
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        open_up(self.folder.glob("*.safetensors"))

    def _next(self, tensors: Mapping[str, Tensor]) -> Path:
        number = len(set(self.places.values())) + 1
        path = self.folder / f"model-{number:05d}-of-{self.n_shards:05d}.safetensors"
        self.places |= dict.fromkeys(tensors, path.name)
        self.n_bytes += sum(tensor.nbytes for tensor in tensors.values())
        self.n_parameters += sum(tensor.numel() for tensor in tensors.values())
        return path
