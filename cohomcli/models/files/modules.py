"""A pickled `torch.nn.Module`, read from the state of objects that were never made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cohomcli.models.files.contents import Leaf, Names, leaf, scalar, settings
from cohomcli.models.files.limits import Limits
from cohomcli.models.files.objects import Inert
from cohomcli.models.files.source import Source

_OWN = ("_parameters", "_buffers", "_modules")
_WRAPPERS = {"module", "_orig_mod"}  # what DDP and torch.compile call the model they wrap
_MAX_TUPLE = 8


@dataclass
class ModuleContent:
    """What a module tree holds. `tensors` is its state dict, in torch's order; `extras` are non-persistent buffers and
    tensors kept as plain attributes. `tree` gives every module's class, `settings` its plain numbers and texts, by
    path ("" is the root). `config` is a Hugging Face configuration found on the root or the model that a wrapper
    around it holds, with its class.
    """

    tensors: dict[str, Leaf] = field(default_factory=dict)
    extras: dict[str, Leaf] = field(default_factory=dict)
    tree: dict[str, str] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    config_class: str = ""

    def update(self, other: ModuleContent, prefix: str) -> None:
        """Add another module's content under `prefix`."""
        start = f"{prefix}." if prefix else ""
        self.tensors |= {f"{start}{name}": value for name, value in other.tensors.items()}
        self.extras |= {f"{start}{name}": value for name, value in other.extras.items()}
        self.tree |= {f"{start}{path}".removesuffix("."): name for path, name in other.tree.items()}
        self.settings |= {f"{start}{path}".removesuffix("."): held for path, held in other.settings.items()}

    def strip_tree(self, prefix: str) -> None:
        """Make the module at `prefix` (`module.`) the root, where a wrapper was."""
        if prefix and any(f"{path}." == prefix for path in self.tree):
            cut = len(prefix)
            self.tree = {p[cut:]: name for p, name in self.tree.items() if f"{p}.".startswith(prefix)}
            self.settings = {p[cut:]: held for p, held in self.settings.items() if f"{p}.".startswith(prefix)}
            self.extras = {name.removeprefix(prefix): value for name, value in self.extras.items()}


def is_module(value: object) -> bool:
    """Whether `value` describes a `torch.nn.Module`: only its state tells, for its class is a mere name."""
    return isinstance(value, Inert) and all(isinstance(value.fields.get(key), dict) for key in _OWN)


def read_module(source: Source, root: Inert, limits: Limits) -> ModuleContent:
    """Collect names, classes and tensors of a module tree.

    Raises:
        InputRefused: modules nested endlessly, or named by something other than text.
    """
    content = ModuleContent()
    names = Names(source, limits)
    pending: list[tuple[tuple[str, ...], Inert]] = [((), root)]
    while pending:
        path, module = pending.pop()
        fields = module.fields
        content.tree[".".join(path)] = module.path
        _collect(content, names, path, fields)
        config = fields.get("config") if set(path) <= _WRAPPERS and content.config is None else None
        if isinstance(config, Inert) and config.path.endswith("Config"):
            content.config, content.config_class = settings(config), config.path
        children = [(names.join(path, name), child) for name, child in fields["_modules"].items() if is_module(child)]
        pending += reversed(children)
    return content


def _collect(content: ModuleContent, names: Names, path: tuple[str, ...], fields: dict[Any, Any]) -> None:
    fleeting = fields.get("_non_persistent_buffers_set")
    hidden = [name for name in fleeting if isinstance(name, str)] if isinstance(fleeting, (list, tuple)) else []
    for kind in ("_parameters", "_buffers"):
        for name, value in fields[kind].items():
            found = leaf(value)
            if found is not None:
                target = content.extras if kind == "_buffers" and name in hidden else content.tensors
                target[".".join(names.join(path, name))] = found
    for name, value in fields.items():
        found = leaf(value)
        if found is not None and isinstance(name, str):
            content.extras[".".join(names.join(path, name))] = found
    plain = {name: value for name, value in fields.items() if isinstance(name, str) and _setting(name, value)}
    if plain:
        content.settings[".".join(path)] = plain


def _setting(name: str, value: object) -> bool:
    if name.startswith("_"):
        return False
    if isinstance(value, tuple):
        return len(value) <= _MAX_TUPLE and all(scalar(item) for item in value)
    return scalar(value)
