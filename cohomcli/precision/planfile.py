"""`plan.json` (schema `cohom.plan/1`): a plan by names, for other runs, other shapes and other tools.

    {"schema": "cohom.plan/1", "cohom": version, "semantics": "store", "epsilon": 0.01, "norm": "rel-l2",
     "graph": {"ops": n, "weights": n, "inputs": n, "modules": n, "sha256": hex},
     "vertices": [{"name", "kind", "target", "module", "format"}, ...],          one per stored tensor, in order
     "weights": {name: {"format", "dtype", "axis"?, "tied"?: [other names]}}}

The digest is over kinds, targets, modules and edges, and over the names and shapes of weights, not over the shapes of
inputs and results or the names of nodes: a plan made for 32 tokens fits the same model's graph for 128.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args

from cohomcli import __version__
from cohomcli.errors import InputRefused, UsageError
from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import weight_axes
from cohomcli.precision.formats import FORMATS, get_format
from cohomcli.precision.spec import SEMANTICS, ComputationGraph, ErrorNorm, Plan, VertexKind

SCHEMA = "cohom.plan/1"
_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class GraphIdentity:
    """What graph a plan is for: counts for people, the digest for certainty."""

    ops: int
    weights: int
    inputs: int
    modules: int
    sha256: str


@dataclass(frozen=True)
class PlannedVertex:
    """One stored tensor and its format, "" where it is fixed."""

    name: str
    kind: VertexKind
    target: str
    module: str
    format: str


@dataclass(frozen=True)
class PlannedWeight:
    """A parameter or buffer: its format, the output channel of an int8 one, and its other names where it is tied."""

    format: str
    axis: int = 0
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlanFile:
    """The contents of a plan file. `epsilon` and `norm` are what the plan was made for."""

    graph: GraphIdentity
    vertices: tuple[PlannedVertex, ...]
    weights: Mapping[str, PlannedWeight]
    epsilon: float | None = None
    norm: ErrorNorm = "rel-l2"
    semantics: str = SEMANTICS
    cohom: str = field(default=__version__)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that are used, in the table's order."""
        used = {v.format for v in self.vertices} | {w.format for w in self.weights.values()}
        return tuple(name for name in FORMATS if name in used)


def plan_file(captured: Captured, plan: Plan, epsilon: float | None = None, norm: ErrorNorm = "rel-l2") -> PlanFile:
    """The plan by names.

    Raises:
        UsageError: the plan is for another graph, or has an unknown format.
    """
    vertices = captured.graph.vertices
    if len(plan.formats) != len(vertices):
        raise UsageError(f"the plan has {len(plan.formats)} formats for {len(vertices)} vertices")
    for vertex, fmt in zip(vertices, plan.formats, strict=True):
        if not vertex.fixed:
            get_format(fmt)
    planned = tuple(
        PlannedVertex(v.name, v.kind, v.target, v.module, "" if v.fixed else fmt)
        for v, fmt in zip(vertices, plan.formats, strict=True)
    )
    return PlanFile(identity(captured.graph), planned, _weights(captured, plan), epsilon, norm)


def _weights(captured: Captured, plan: Plan) -> dict[str, PlannedWeight]:
    axes, vertices = weight_axes(captured), captured.graph.vertices
    names: dict[int, list[str]] = {}
    for held in captured.program.held:
        names.setdefault(captured.layout.root[held.slot], []).append(held.name)
    return {
        first: PlannedWeight(plan.formats[v], axes.get(v, 0) if plan.formats[v] == "int8" else 0, tuple(others))
        for v, (first, *others) in names.items()
        if not vertices[v].fixed
    }


def identity(graph: ComputationGraph) -> GraphIdentity:
    """The counts and the digest of a graph, independent of the shapes of its inputs."""
    digest = hashlib.sha256()
    kinds = {"op": 0, "weight": 0, "input": 0}
    for v in graph.vertices:
        kinds[v.kind] += 1
        held = (v.name, v.shape) if v.kind == "weight" else ()
        digest.update(repr((v.kind, v.target, v.module, v.dtype, v.operands, bool(v.fixed), held)).encode())
    digest.update(repr(graph.outputs).encode())
    modules = len({v.module for v in graph.vertices if v.module})
    return GraphIdentity(kinds["op"], kinds["weight"], kinds["input"], modules, digest.hexdigest())


def plan_for(found: PlanFile, graph: ComputationGraph) -> Plan:
    """The plan of a file for `graph`.

    Raises:
        UsageError: the file's plan is for another graph; says what differs.
    """
    here = identity(graph)
    if here.sha256 != found.graph.sha256:
        raise UsageError(
            f"the plan is for another graph: {_difference(found.graph, here)}",
            "use the model that the plan was made for, captured with the same kind of inputs",
        )
    return Plan(tuple(v.format for v in found.vertices))


def _difference(planned: GraphIdentity, here: GraphIdentity) -> str:
    for name in ("ops", "weights", "inputs", "modules"):
        wanted, got = getattr(planned, name), getattr(here, name)
        if wanted != got:
            return f"{wanted} {name} in the plan, {got} in the model"
    return "as many ops and weights, but others"


# --- JSON -------------------------------------------------------------------------------------------------------------


def dump_plan(found: PlanFile) -> str:
    """The file's text: strict JSON, one line per vertex and weight, the same for equal plans."""
    head = {
        "schema": SCHEMA,
        "cohom": found.cohom,
        "semantics": found.semantics,
        "epsilon": found.epsilon,
        "norm": found.norm,
        "graph": vars(found.graph),
    }
    vertices = ",\n  ".join(_line(vars(v)) for v in found.vertices)
    weights = ",\n  ".join(f"{_line(name)}: {_line(_weight_entry(w))}" for name, w in found.weights.items())
    lines = [f"{_line(key)}: {_line(value)}" for key, value in head.items()]
    lines += [f'"vertices": [\n  {vertices}\n ]', f'"weights": {{\n  {weights}\n }}']
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _weight_entry(weight: PlannedWeight) -> dict[str, Any]:
    entry: dict[str, Any] = {"format": weight.format, "dtype": get_format(weight.format).dtype}
    if weight.format == "int8":
        entry["axis"] = weight.axis
    if weight.tied:
        entry["tied"] = list(weight.tied)
    return entry


def read_plan(path: Path) -> PlanFile:
    """Read a plan file.

    Raises:
        InputRefused: missing, unreadable, not strict JSON, of another schema, or with impossible contents.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputRefused(f"{str(path)!r} is too large for a plan", "give a plan.json that cohom wrote")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputRefused(f"cannot read {str(path)!r}: {error.strerror}", "give a plan.json") from error
    except UnicodeDecodeError as error:
        raise InputRefused(f"{str(path)!r} is not UTF-8", "give a plan.json that cohom wrote") from error
    return parse_plan(text, str(path))


def parse_plan(text: str, label: str = "the plan") -> PlanFile:
    """A plan from its file's text; `label` is how errors name it.

    Raises:
        InputRefused: not strict JSON, of another schema, or with impossible contents.
    """
    refuse = _Refusal(label)
    try:
        content = json.loads(text, parse_constant=refuse.constant, object_pairs_hook=refuse.repeated)
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{label!r} is not valid JSON", "give a plan.json that cohom wrote") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        refuse(f"its schema is {content.get('schema')!r}, not {SCHEMA!r}" if isinstance(content, dict) else "no object")
    try:
        return _parsed(content, refuse)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputRefused(f"{label!r} is no plan: {error}", "give a plan.json that cohom wrote") from error


class _Refusal:
    def __init__(self, label: str) -> None:
        self.label = label

    def __call__(self, why: str) -> NoReturn:
        raise InputRefused(f"{self.label!r} is no plan: {why}", "give a plan.json that cohom wrote")

    def constant(self, name: str) -> NoReturn:
        self(f"{name} is no number of strict JSON")

    def repeated(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            self("a key is repeated")
        return found


def _parsed(content: Mapping[str, Any], refuse: _Refusal) -> PlanFile:
    norm, epsilon = content["norm"], content["epsilon"]
    if norm not in get_args(ErrorNorm):
        refuse(f"unknown norm {norm!r}")
    if epsilon is not None and not (isinstance(epsilon, (int, float)) and 0 <= epsilon < math.inf):
        refuse(f"epsilon is {epsilon!r}")
    if content["semantics"] != SEMANTICS:
        refuse(f"its semantics is {content['semantics']!r}, not {SEMANTICS!r}")
    vertices = tuple(_vertex(entry, refuse) for entry in content["vertices"])
    weights = {str(name): _weight(name, entry, refuse) for name, entry in content["weights"].items()}
    graph = GraphIdentity(**content["graph"])
    counted = {kind: sum(v.kind == kind for v in vertices) for kind in get_args(VertexKind)}
    if counted != {"op": graph.ops, "weight": graph.weights, "input": graph.inputs}:
        refuse("it lists other vertices than its graph has")
    return PlanFile(graph, vertices, weights, epsilon, norm, str(content["semantics"]), str(content["cohom"]))


def _vertex(entry: Mapping[str, Any], refuse: _Refusal) -> PlannedVertex:
    found = PlannedVertex(**entry)
    if not all(isinstance(value, str) for value in vars(found).values()) or found.kind not in get_args(VertexKind):
        refuse(f"the entry {str(dict(entry))[:80]} is no vertex")
    _check_format(found.format, found.name, refuse, empty=True)
    return found


def _weight(name: str, entry: Mapping[str, Any], refuse: _Refusal) -> PlannedWeight:
    tied, axis = entry.get("tied", []), entry.get("axis", 0)
    _check_format(entry["format"], name, refuse)
    if entry["dtype"] != get_format(entry["format"]).dtype:
        refuse(f"{name!r} is {entry['format']} and {entry['dtype']!r} at once")
    if not isinstance(tied, list) or not all(isinstance(other, str) for other in tied) or axis not in (0, 1):
        refuse(f"the entry of weight {name!r} is malformed")
    return PlannedWeight(entry["format"], int(axis), tuple(tied))


_Check = Callable[[str], NoReturn]


def _check_format(fmt: Any, name: str, refuse: _Check, empty: bool = False) -> None:
    if fmt not in FORMATS and not (empty and fmt == ""):
        refuse(f"{name!r} has the unknown format {fmt!r}")
