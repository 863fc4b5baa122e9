"""`hf`: a transformers folder with every weight in its planned dtype (`precision.mixed_folder`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cohomcli.errors import AnalysisIncomplete
from cohomcli.models.eager import eager_attention
from cohomcli.precision.exports.base import Exported, Source, equal
from cohomcli.precision.mixed import with_planned_weights
from cohomcli.precision.mixed_folder import load_mixed, save_mixed

FOLDER = "model"


def export(source: Source, folder: Path) -> Exported:
    """Write model/, load it again, and compare its results with those of the model under the same weights.

    Raises:
        UsageError: the model is not transformers'.
        AnalysisIncomplete: the reloaded results differ in a bit, or the disk is full.
    """
    saved = save_mixed(source.model, source.planned, folder / FOLDER, source.tokenizer)
    with eager_attention(source.model):
        wanted = _results(with_planned_weights(source.model, source.planned), source)
    if not equal(_results(load_mixed(saved), source), wanted):
        raise AnalysisIncomplete("the reloaded folder computes something else than its weights", "please report this")
    return Exported(
        tuple(sorted(f"{FOLDER}/{file.name}" for file in saved.iterdir())),
        keeps="the format of every weight, at any input shape; plan.json holds the rest of the plan",
        omits="results are float32: formats and conversions of ops need plan.json and cohom's apply",
        check="loaded by cohom and transformers: outputs equal those under the planned weights in every bit",
    )


def _results(model: nn.Module, source: Source) -> list[torch.Tensor]:
    """The captured outputs of a call of the module itself."""
    example = source.captured.example
    with torch.no_grad():
        result: Any = model(*example.args, **dict(example.kwargs or {}))
    names = [name for name, _ in source.captured.program.outputs]
    return [result[int(name)] if name.isdigit() else result if name == "output" else result[name] for name in names]
