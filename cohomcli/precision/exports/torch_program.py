"""`torch`: the plan as an exported program, model.pt2, whose results are those of the plan, bit for bit."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from cohomcli.errors import AnalysisIncomplete
from cohomcli.precision.exports.base import Exported, Source, emulated, equal, flat_outputs
from cohomcli.precision.exports.traced import StoreModel, tensor_call

FILE = "model.pt2"


def export(source: Source, folder: Path) -> Exported:
    """Write model.pt2 (`torch.export.save`), load it again, and compare its outputs with the emulated plan's.

    Raises:
        UsageError: a plan with fp64.
        AnalysisIncomplete: torch.export refuses the graph, or the reloaded outputs differ in a bit.
    """
    call = tensor_call(source.captured.example)
    model = StoreModel(source.plan, source.captured)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, call.args, dict(call.kwargs or {}), strict=False)
            torch.export.save(program, folder / FILE)
            loaded = torch.export.load(folder / FILE).module()
        except (RuntimeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AnalysisIncomplete(f"torch.export refuses the plan's graph: {first[:200]}") from error
        found = flat_outputs(loaded(*call.args, **dict(call.kwargs or {})))
    if not equal(found, emulated(source)):
        raise AnalysisIncomplete("the reloaded program computes something else than the plan", "please report this")
    return Exported(
        (FILE,),
        keeps="the format of every op and weight, every conversion, and the arithmetic that the report measured",
        omits="shapes are those of the capture; ops compute in float32 between conversions, which a compiler may fuse",
        check=f"loaded by torch {torch.__version__}: outputs equal the emulated plan's in every bit",
    )
