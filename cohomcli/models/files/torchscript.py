"""TorchScript archives without `torch.jit.load`, which compiles and runs the `__setstate__` methods they carry.

Weights are read from `data.pkl` and `constants.pkl`; the module tree from the class names in them; which attributes are
parameters and buffers from the declarations in the archive's source text, matched as text.
"""

from __future__ import annotations

import re

from cohomcli.models.files.archive import Archive
from cohomcli.models.files.contents import Names, leaf, scalar
from cohomcli.models.files.limits import Limits
from cohomcli.models.files.modules import ModuleContent
from cohomcli.models.files.objects import Inert
from cohomcli.models.files.source import Source
from cohomcli.models.files.torchfile import read_zip_pickle

_MANGLED = re.compile(r"\.?___torch_mangle_\d+")
_CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)
_DECLARED = re.compile(r"^  __(?:parameters|buffers)__ = \[([^\]\n]*)\]", re.MULTILINE)
_QUOTED = re.compile(r'"([^"]*)"')
_MAX_CODE = 64 * 2**20


def read_torchscript(source: Source, archive: Archive, limits: Limits) -> ModuleContent:
    """The tensors of a scripted or traced module; `extras` holds its tensor attributes and constants.

    A traced module does not say which buffers were persistent: all of them are in `tensors`.

    Raises:
        InputRefused: damaged, or its storages are not as long as claimed.
    """
    root = archive.root
    top = read_zip_pickle(source, archive, limits, f"{root}data.pkl", f"{root}data/")
    if not isinstance(top, Inert):
        raise source.corrupt("its TorchScript data describe no module")
    content = ModuleContent()
    _walk(source, top, content, _declarations(archive), limits)
    if f"{root}constants.pkl" in archive:
        constants = read_zip_pickle(source, archive, limits, f"{root}constants.pkl", f"{root}constants/")
        for index, value in enumerate(constants if isinstance(constants, (tuple, list)) else ()):
            found = leaf(value)
            if found is not None:
                content.extras[f"CONSTANTS.c{index}"] = found
    return content


def _walk(source: Source, top: Inert, content: ModuleContent, declared: dict[str, set[str]], limits: Limits) -> None:
    names = Names(source, limits)
    pending: list[tuple[tuple[str, ...], Inert]] = [((), top)]
    while pending:
        path, module = pending.pop()
        known = declared.get(module.path)
        content.tree[".".join(path)] = _MANGLED.sub("", module.path).removeprefix("__torch__.")
        children = []
        for name, value in module.fields.items():
            found = leaf(value)
            if found is not None:
                target = content.tensors if known is None or name in known else content.extras
                target[".".join(names.join(path, name))] = found
            elif isinstance(value, Inert) and value.path.startswith("__torch__."):
                children.append((names.join(path, name), value))
        plain = {str(name): value for name, value in module.fields.items() if scalar(value)}
        plain = {name: value for name, value in plain.items() if value is not None and not name.startswith("_")}
        if plain:
            content.settings[".".join(path)] = plain
        pending += reversed(children)


def _declarations(archive: Archive) -> dict[str, set[str]]:
    """Class path -> names its source declares as parameters and buffers."""
    declared: dict[str, set[str]] = {}
    folder = f"{archive.root}code/"
    left = _MAX_CODE
    for name in archive.entries:
        if not name.startswith(folder) or not name.endswith(".py"):
            continue
        raw = archive.read(name, left)
        left -= len(raw)
        text = raw.decode("utf-8", "replace")
        module = name.removeprefix(folder).removesuffix(".py").replace("/", ".")
        starts = [*_CLASS.finditer(text)]
        ends = [match.start() for match in starts[1:]] + [len(text)]
        for match, end in zip(starts, ends, strict=False):  # a file of functions has no class at all
            lists = _DECLARED.findall(text, match.end(), end)
            declared[f"{module}.{match[1]}"] = {name for listed in lists for name in _QUOTED.findall(listed)}
    return declared
