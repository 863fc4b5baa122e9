"""`torchao`: an `FqnToConfig` that quantises exactly the linear modules that the plan stores in 8 bits.

torchao_config.json is torchao's own serialisation (`torchao.core.config.config_from_dict` reads it), and
quantization_config.json the entry of a transformers config.json. Names are exact: a pattern that also matches a module
without weights makes torchao raise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from cohomcli.precision.exports.base import Exported, Source, is_scaled, linear_modules, tied_names
from cohomcli.precision.formats import get_format

FILE, HF_FILE = "torchao_config.json", "quantization_config.json"


def export(source: Source, folder: Path) -> Exported:
    """Write both files. torchao itself is not needed."""
    linear, tied = linear_modules(source), tied_names(source.planned)
    wanted = {name: fmt if is_scaled(fmt) and f"{name}.weight" not in tied else "" for name, fmt in linear.items()}
    config = fqn_to_config(wanted)
    (folder / FILE).write_text(_text(config), encoding="utf-8")
    (folder / HF_FILE).write_text(_text({"quant_method": "torchao", "quant_type": {"default": config}}), "utf-8")
    chosen = sum(bool(fmt) for fmt in wanted.values())
    return Exported(
        (FILE, HF_FILE),
        keeps=f"{chosen} of {len(linear)} linear modules quantised in their planned 8-bit format, the others not",
        omits="; ".join(_omitted(source, linear, tied)),
    )


def fqn_to_config(formats: dict[str, str]) -> dict[str, Any]:
    """torchao's serialised `FqnToConfig`: module name to an 8-bit format, or "" for one that is left alone."""
    entries = {name: _config(fmt) if fmt else None for name, fmt in formats.items()}
    # torchao 0.18 writes the entries under their earlier name as well, and reads either
    return {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": entries, "module_fqn_to_config": entries}}


def _config(fmt: str) -> dict[str, Any]:
    """One scale per output row, which is torchao's own default for both."""
    granularity = {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}
    common: dict[str, Any] = {"granularity": granularity, "set_inductor_config": True}
    if fmt == "int8":
        return {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {"group_size": None, **common}}
    dtype = {"_type": "torch.dtype", "_data": get_format(fmt).dtype}
    return {"_type": "Float8WeightOnlyConfig", "_version": 2, "_data": {"weight_dtype": dtype, **common}}


def _omitted(source: Source, linear: dict[str, str], tied: set[str]) -> list[str]:
    found = ["formats of ops, and 16 bits of weights; torchao chooses its own scales, one per row"]
    scaled = {n for n, w in source.planned.weights.items() if is_scaled(w.format)}
    if alone := scaled - {f"{name}.weight" for name in linear}:
        found.append(f"{len(alone)} 8-bit weights of other modules ({_example(source, alone)})")
    if shared := [n for n, fmt in linear.items() if is_scaled(fmt) and f"{n}.weight" in tied]:
        found.append(f"{len(shared)} linear modules whose weight is tied ({shared[0]})")
    if not scaled:
        found.append("this plan stores nothing in 8 bits (--formats with e4m3, e5m2 or int8 would let it)")
    return found


def _example(source: Source, names: set[str]) -> str:
    first = min(names)
    module: nn.Module = source.model.get_submodule(first.rpartition(".")[0])
    return f"{first} of a {type(module).__name__}"


def _text(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
