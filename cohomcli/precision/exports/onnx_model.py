"""`onnx`: the plan as a strongly typed ONNX graph, every op in its format and one Cast for each conversion.

PyTorch's own exporter writes it from `traced.NativeModel`, and onnxscript's optimiser folds what is constant, except
the plan's conversions. nodes.json maps every node to the op, the module and the format that it belongs to.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from cohomcli.errors import AnalysisIncomplete
from cohomcli.precision.capture import Captured
from cohomcli.precision.exports.base import Exported, Source, emulated, relative_error
from cohomcli.precision.exports.traced import NativeModel, cast_name, op_name, tensor_call
from cohomcli.precision.spec import Plan

FILE, NODES = "model.onnx", "nodes.json"
_SCOPES = "pkg.torch.onnx.name_scopes"
_INSIDE = 2**31 - 2**24  # bytes; a protobuf cannot hold more, and larger weights go into a file beside it


@dataclass(frozen=True)
class Graph:
    """An ONNX program, and for every node the step of the plan it belongs to ("" for views and constants)."""

    program: Any
    step: dict[str, str]
    n_casts: int


def export(source: Source, folder: Path) -> Exported:
    """Write model.onnx and nodes.json, and run the graph in ONNX Runtime where that has the kernels.

    Raises:
        UsageError: a plan with 8-bit formats.
        AnalysisIncomplete: the exporter refuses the graph, or writes another number of casts than the plan has.
    """
    model = NativeModel(source.plan, source.captured)
    graph = build(model, source.captured)
    casts = float_casts(graph.program.model)
    if len(casts) != model.n_casts:
        raise AnalysisIncomplete(f"the ONNX graph has {len(casts)} conversions and the plan {model.n_casts}")
    files = save(graph, folder / FILE)
    (folder / NODES).write_text(node_map(graph, source.captured, source.plan), encoding="utf-8")
    return Exported(
        (*files, NODES),
        keeps=f"the format of every op and weight, and the plan's {model.n_casts} conversions as Cast nodes",
        omits="shapes are those of the capture; an op accumulates as its kernel does, and CPUs have few 16-bit kernels",
        check=_check(source, folder / FILE),
    )


def build(model: NativeModel, captured: Captured) -> Graph:
    """The ONNX program of a traced model, constants folded, metadata reduced to the plan's own.

    Raises:
        AnalysisIncomplete: torch's exporter refuses the graph; says why.
    """
    call = tensor_call(captured.example)
    with _silence():
        try:
            traced = torch.export.export(model, call.args, dict(call.kwargs or {}), strict=False)
            program = torch.onnx.export(traced, dynamo=True, optimize=False, verbose=False)
        except Exception as error:  # the exporter raises whatever its many parts raise
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AnalysisIncomplete(f"torch's ONNX exporter refuses the plan's graph: {first[:200]}") from error
        assert program is not None
        _fold(program.model)
    return Graph(program, _label(program.model), model.n_casts)


def _fold(model: Any) -> None:
    """Constants folded by onnxscript, but not the conversions of constants and weights, which are the plan's.

    Its whole optimiser would also merge equal constants, and with them their conversions.
    """
    from onnxscript.optimizer import fold_constants, inline, remove_unused_nodes

    inline(model)
    fold_constants(model, onnx_shape_inference=True, should_fold=_may_fold)
    remove_unused_nodes(model)


def _may_fold(node: Any) -> bool | None:
    """No for the plan's conversions, and for what reads a weight, which keeps its name; else as onnxscript likes."""
    reads_weight = any(value is not None and str(value.name).startswith("weights.") for value in node.inputs)
    return False if reads_weight or _step(node).startswith("cast_") else None


def _step(node: Any) -> str:
    """The module under `steps` that a node came from, "" for none."""
    found = re.search(r"'steps\.((?:op|cast)_\w+)'", node.metadata_props.get(_SCOPES, ""))
    return found.group(1) if found else ""


def _label(model: Any) -> dict[str, str]:
    """Nodes to steps; stack traces with the paths of this machine are dropped from the metadata."""
    steps = {}
    for node in model.graph:
        step = _step(node)
        steps[str(node.name)] = step
        node.metadata_props.clear()
        if step:
            node.metadata_props["cohom.step"] = step
    for value in [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.metadata_props.clear()
    return steps


def float_casts(model: Any) -> list[str]:
    """The names of the nodes that convert one floating-point type into another."""
    return [
        str(node.name)
        for node in model.graph
        if node.op_type == "Cast"
        and (node.inputs[0].dtype is None or node.inputs[0].dtype.is_floating_point())
        and node.outputs[0].dtype.is_floating_point()
    ]


def save(graph: Graph, file: Path) -> tuple[str, ...]:
    """Write the program; weights beyond 2 GiB go into a file beside it. Returns the names of the files."""
    size = sum(value.const_value.nbytes for value in graph.program.model.graph.initializers.values())
    with _silence():
        graph.program.save(str(file), external_data=size > _INSIDE)
    return (file.name, f"{file.name}.data") if size > _INSIDE else (file.name,)


def node_map(graph: Graph, captured: Captured, plan: Plan) -> str:
    """JSON: every node of an op or a conversion with the plan's op, its module and its format."""
    known: dict[str, dict[str, str]] = {}
    for v in captured.graph.vertices:
        known[op_name(v)] = {"op": v.name, "module": v.module, "format": plan.formats[v.index] or v.dtype}
        for fmt in set(plan.formats) - {""}:
            known[cast_name(v, fmt)] = {"op": v.name, "module": v.module, "cast to": fmt}
    named = {node: known[step] for node, step in graph.step.items() if step}
    return json.dumps(named, indent=1, ensure_ascii=False) + "\n"


def run(file: Path, captured: Captured) -> list[torch.Tensor]:
    """The outputs of a file in ONNX Runtime's CPU provider on the captured example.

    Raises:
        AnalysisIncomplete: ONNX Runtime has no kernel for one of its nodes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    call = tensor_call(captured.example)
    leaves = [x for x in pytree.tree_leaves((call.args, dict(call.kwargs or {}))) if isinstance(x, torch.Tensor)]
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feed = {given.name: leaf.numpy() for given, leaf in zip(session.get_inputs(), leaves, strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, feed)]
    except Exception as error:  # onnxruntime's errors have no common class of their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AnalysisIncomplete(f"ONNX Runtime cannot run it: {first[:160]}") from error


def _check(source: Source, file: Path) -> str:
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(file), full_check=True)
    checked = f"accepted by onnx {onnx.__version__}'s checker"
    try:
        found = run(file, source.captured)
    except AnalysisIncomplete as error:
        return f"{checked}; not run here: {error}"
    gap = relative_error(found, emulated(source))
    where = f"ONNX Runtime {onnxruntime.__version__} on CPU"
    return f"{checked}; run by {where}: its outputs differ from the emulated plan's by {gap:.2e} (rel-l2)"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Neither warnings nor logs nor prints of the exporter: what matters comes back as an error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
