"""What was read from one model file, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cohomcli.models.files.sniff import FileKind


@dataclass(frozen=True)
class ModelFile:
    """The weights of one file and what the file says about them. Nothing in it came from running the file.

    `tensors` is the state dict: CPU, stored element types, no gradients; tensors that shared memory still share it.
    `extras` are non-persistent buffers, tensor attributes and constants, which no state dict has.
    `module_tree` maps module path ("" is the root) to class name, for kinds that keep modules, and
    `module_settings` a path to the plain numbers and texts of that module (`in_features`, `eps`, ...).
    `tied` groups the names of tensors that are one tensor. `unread` says why a tensor could not be read.
    `place` leads to the weights inside the file ("" is the file itself) and `others` to what else it holds, with the
    number of tensors; `stripped` is the wrapper prefix (`module.`) taken off every name.
    `config` is a Hugging Face configuration found on a pickled model and `config_class` its class.
    `facts` are plain settings saved beside the weights (`epoch`, `model_args`). `graph` is the exported program of a
    `.pt2` file (`torch._export.serde.schema.ExportedProgram` as JSON) and `sample_inputs` the tensors it was
    exported with. `trusted` describes the child process when the user allowed the file to run code, else None.
    `notes` are for people.
    """

    path: Path
    kind: FileKind
    tensors: dict[str, Tensor]
    extras: dict[str, Tensor] = field(default_factory=dict)
    module_tree: dict[str, str] = field(default_factory=dict)
    module_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()
    unread: dict[str, str] = field(default_factory=dict)
    place: str = ""
    others: tuple[tuple[str, int], ...] = ()
    stripped: str = ""
    config: dict[str, Any] | None = None
    config_class: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    graph: Mapping[str, Any] | None = None
    sample_inputs: tuple[Tensor, ...] = ()
    trusted: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def root_class(self) -> str:
        """The class of the whole model, or "" when the file holds only tensors."""
        return self.module_tree.get("", "")

    @property
    def n_parameters(self) -> int:
        """Elements of all distinct tensors: tied ones count once."""
        seconds = {name for group in self.tied for name in group[1:]}
        return sum(value.numel() for name, value in self.tensors.items() if name not in seconds)
