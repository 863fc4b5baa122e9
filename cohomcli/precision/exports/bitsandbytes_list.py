"""`bitsandbytes`: the linear modules that LLM.int8() should skip, as transformers' `BitsAndBytesConfig` takes them.

Advisory: bitsandbytes quantises activations too, which is outside of the plan's error model.
"""

from __future__ import annotations

import json
from pathlib import Path

from cohomcli.precision.exports.base import Exported, Source, linear_modules, tied_names

FILE = "bitsandbytes.json"


def export(source: Source, folder: Path) -> Exported:
    """Write bitsandbytes.json: the keyword arguments of `transformers.BitsAndBytesConfig`."""
    linear, tied = linear_modules(source), tied_names(source.planned)
    skipped = sorted(n for n, fmt in linear.items() if fmt != "int8" or f"{n}.weight" in tied)
    content = {"load_in_8bit": True, "llm_int8_skip_modules": skipped}
    (folder / FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    none = "" if "int8" in source.plan.formats else "; this plan has no int8 (--formats with int8 would let it)"
    return Exported(
        (FILE,),
        keeps=f"{len(skipped)} of {len(linear)} linear modules left alone: those that the plan keeps wider than int8",
        omits=f"advisory: LLM.int8() also quantises activations, whose error the plan does not predict{none}",
    )
