"""`autocast`: the model under `torch.autocast` with the plan's fp32 modules taken out, as a Python file of its own.

For those who have to stay on autocast. An island is a module all of whose ops the plan keeps in fp32 or wider; the
largest such modules are listed. Everything else is left to autocast's op lists.
"""

from __future__ import annotations

import json
from pathlib import Path

from cohomcli.precision.exports.base import HALVES, Exported, Source, main_half
from cohomcli.precision.formats import get_format

FILE = "autocast_shim.py"
_TEMPLATE = '''"""Runs a model under torch.autocast with these modules in float32; written by cohom.

    with planned_autocast(model, "cuda"):
        logits = model(**batch).logits
"""

import contextlib

import torch

DTYPE = torch.{dtype}
ISLANDS = {islands}


@contextlib.contextmanager
def planned_autocast(model, device="cpu", dtype=DTYPE, islands=tuple(ISLANDS)):
    """Autocast to `dtype` on `device` inside the context; `islands` compute in float32 from float32 inputs."""
    modules = [model.get_submodule(name) for name in islands]
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = _in_float32(module.forward, device)
    try:
        with torch.autocast(device, dtype=dtype):
            yield model
    finally:
        for module, forward in zip(modules, before):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _in_float32(forward, device):
    def wide(value):
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def wrapped(*args, **kwargs):
        with torch.autocast(device, enabled=False):
            return forward(*map(wide, args), **{{key: wide(value) for key, value in kwargs.items()}})

    return wrapped
'''


def export(source: Source, folder: Path) -> Exported:
    """Write autocast_shim.py, which needs torch alone."""
    found = islands(source)
    low = main_half(source)
    listed = json.dumps(found, indent=4, ensure_ascii=True) if found else "[]"
    text = _TEMPLATE.format(dtype=get_format(low).dtype, islands=listed)
    (folder / FILE).write_text(text, encoding="utf-8")
    return Exported(
        (FILE,),
        keeps=f"{len(found)} modules in fp32: those whose ops the plan all keeps there; autocast to {low} elsewhere",
        omits="formats of single ops, weights and residual sums: autocast's lists decide, and convert weights in every "
        "call; the error is not the plan's",
    )


def islands(source: Source) -> list[str]:
    """The largest modules, by name, that hold an op and none in a 16-bit format; the model itself is never one."""
    narrow: set[str] = set()
    wide: set[str] = set()
    for vertex in source.planned.vertices:
        if vertex.kind == "op" and vertex.format and vertex.module:
            (narrow if vertex.format in HALVES or get_format(vertex.format).n_bytes == 1 else wide).add(vertex.module)
    crossed = {parent for name in narrow for parent in _with_parents(name)}
    known = {name for name, _ in source.model.named_modules()}
    free = {parent for name in wide for parent in _with_parents(name)} & known - crossed
    return sorted(name for name in free if not any(parent in free for parent in _with_parents(name)[:-1]))


def _with_parents(name: str) -> list[str]:
    """The dotted prefixes of a name, shortest first, the name itself last."""
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]
