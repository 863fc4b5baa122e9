"""`modelopt`: a float32 ONNX graph and the nodes that NVIDIA ModelOpt AutoCast has to leave in float32.

AutoCast knows float32 and one 16-bit type. What the plan keeps in another format than that one is excluded, by anchored
exact names, and AutoCast's own rules on ranges are switched off: the plan's were measured.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from cohomcli.precision.execute import uniform
from cohomcli.precision.exports import onnx_model
from cohomcli.precision.exports.base import Exported, Source, main_half
from cohomcli.precision.exports.traced import NativeModel, op_name
from cohomcli.precision.spec import Vertex

FILE, SETTINGS = "model-fp32.onnx", "autocast.json"
_ANY = 3.0e38  # larger than any float32 that is a value: no node is excluded for its range


def export(source: Source, folder: Path) -> Exported:
    """Write the graph and autocast.json, the keyword arguments of `modelopt.onnx.autocast.convert_to_mixed_precision`.

    Raises:
        AnalysisIncomplete: torch's ONNX exporter refuses the graph.
    """
    graph = onnx_model.build(NativeModel(uniform(source.captured, "fp32"), source.captured), source.captured)
    files = onnx_model.save(graph, folder / FILE)
    low = main_half(source)
    kept = {op_name(v) for v, fmt in _ops(source) if fmt != low}
    names = [node for node, step in graph.step.items() if step in kept]
    settings = {
        "onnx_path": FILE,
        "low_precision_type": low,
        "nodes_to_exclude": [f"^{re.escape(name)}$" for name in names],
        "data_max": _ANY,
        "init_max": _ANY,
        "keep_io_types": True,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    others = sum(fmt not in ("fp32", low) for _, fmt in _ops(source))
    return Exported(
        (*files, SETTINGS),
        keeps=f"{len(kept)} of {len(_ops(source))} ops in fp32, the others in {low}",
        omits=f"formats of weights are those of their readers; {others} ops of other formats stay in fp32; where casts "
        "go is AutoCast's choice",
    )


def _ops(source: Source) -> list[tuple[Vertex, str]]:
    """The ops whose format was chosen, with it."""
    vertices = source.captured.graph.vertices
    return [(v, source.plan.formats[v.index]) for v in vertices if v.kind == "op" and not v.fixed]
