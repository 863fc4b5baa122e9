"""What an exporter is given and what it gives back, and what several of them ask of a model and its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import Emulator
from cohomcli.precision.formats import FORMATS, get_format
from cohomcli.precision.planfile import PlanFile
from cohomcli.precision.spec import Plan

HALVES = ("fp16", "bf16")


@dataclass(frozen=True)
class Source:
    """A float32 model, its captured program and plan, the plan by names, and the tokenizer where there is one."""

    model: nn.Module
    captured: Captured
    plan: Plan
    planned: PlanFile
    tokenizer: Any = None


@dataclass(frozen=True)
class Exported:
    """What was written: file names in the export's folder, what they keep of the plan, and what they cannot say.

    `check` says what loading it back showed while it was written; empty where only the tool itself could do that.
    """

    files: tuple[str, ...]
    keeps: str
    omits: str
    check: str = ""


def emulated(source: Source) -> tuple[torch.Tensor, ...]:
    """The plan's outputs on the captured example, under the semantics `store`."""
    return Emulator(source.captured)(source.plan, source.captured.example).outputs


def flat_outputs(result: Any) -> list[torch.Tensor]:
    """A module's result as the list of its outputs."""
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result.values()) if isinstance(result, Mapping) else list(result)


def equal(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
    """Whether two lists of outputs agree in dtype and in every bit that is not a NaN's."""
    return len(found) == len(wanted) and all(
        a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
        for a, b in zip(found, wanted, strict=True)
    )


def relative_error(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """||found - wanted||_2 / ||wanted||_2 over all outputs together, in float64."""
    gaps = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, wanted, strict=True))
    size = sum(float(b.double().square().sum()) for b in wanted)
    return float((gaps / size) ** 0.5) if size else float(gaps > 0)


def weight_formats(planned: PlanFile) -> dict[str, str]:
    """The format of every planned weight under all of its names."""
    found: dict[str, str] = {}
    for name, weight in planned.weights.items():
        found |= dict.fromkeys((name, *weight.tied), weight.format)
    return found


def tied_names(planned: PlanFile) -> set[str]:
    """Names of weights that have more than one."""
    return {n for name, weight in planned.weights.items() if weight.tied for n in (name, *weight.tied)}


def linear_modules(source: Source) -> dict[str, str]:
    """The exact names of the model's `nn.Linear` modules whose weight the plan names, with its format."""
    formats = weight_formats(source.planned)
    return {
        name: formats[f"{name}.weight"]
        for name, module in source.model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in formats
    }


def main_half(source: Source) -> str:
    """The 16-bit format that most ops are planned in; fp16 where there is none."""
    count = {fmt: sum(v.kind == "op" and v.format == fmt for v in source.planned.vertices) for fmt in HALVES}
    return max(HALVES, key=lambda fmt: count[fmt])


def used_formats(source: Source) -> list[str]:
    """The formats of the plan, in the table's order."""
    return [fmt for fmt in FORMATS if fmt in source.plan.formats]


def is_scaled(fmt: str) -> bool:
    """Whether a format has 8 bits, and so scales."""
    return get_format(fmt).n_bytes == 1
