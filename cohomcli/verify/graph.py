"""A program of ATen operations in plain JSON: what a certificate says is computed, readable without torch.

{"schema": "cohom.graph/1", "instructions": [{"op", "args", "kwargs", "out", "shape"}], "held": [{"slot", "name"}],
"arguments": [{"slot", "name"}], "outputs": [{"name", "slot"}]}. Values are numbered slots; in arguments {"slot": n}
reads one, {"dtype": "float32"} is a dtype, {"float": "inf"} a number that JSON has not. Held tensors are named in the
weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "cohom.graph/1"
_KEYS = {"schema", "instructions", "held", "arguments", "outputs"}
_SPECIAL = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}


class BadGraph(ValueError):
    """The JSON is no graph."""


@dataclass(frozen=True)
class Ref:
    """Stands in arguments for the value in this slot."""

    slot: int


@dataclass(frozen=True)
class Step:
    """One operation: slot `out` = op(*args, **kwargs); `shape` of its result, or None for a list of results."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: int
    shape: tuple[int, ...] | None
    reads: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = dict.fromkeys(leaf.slot for leaf in _leaves((self.args, self.kwargs)) if isinstance(leaf, Ref))
        object.__setattr__(self, "reads", tuple(found))


@dataclass(frozen=True)
class PlainGraph:
    """Steps in order; `held` and `arguments` map slots to names, `outputs` names to slots."""

    steps: tuple[Step, ...]
    held: dict[int, str]
    arguments: dict[int, str]
    outputs: dict[str, int]

    def needed(self, wanted: Mapping[int, Any] | set[int], given: set[int]) -> tuple[Step, ...]:
        """The steps that lead from slots `given`, held tensors and arguments to slots `wanted`."""
        alive, kept = set(wanted) - given, []
        for step in reversed(self.steps):
            if step.out in alive and step.out not in given:
                kept.append(step)
                alive.update(slot for slot in step.reads if slot not in given)
        return tuple(kept[::-1])

    def sources(self, wanted: set[int], given: set[int]) -> set[str]:
        """Names of the arguments that slots `wanted` depend on when slots `given` are known."""
        reached = set(wanted) - given
        for step in self.needed(wanted, given):
            reached.update(slot for slot in step.reads if slot not in given)
        return {name for slot, name in self.arguments.items() if slot in reached}


def read_graph(document: Any) -> PlainGraph:
    """The graph in a JSON document.

    Raises:
        BadGraph: it is none, a slot is read before it is written, or written twice.
    """
    try:
        if document["schema"] != SCHEMA or set(document) != _KEYS:
            raise BadGraph(f"not a document of schema {SCHEMA}")
        steps = tuple(_step(item) for item in document["instructions"])
        held = {_slot(h["slot"]): str(h["name"]) for h in document["held"]}
        arguments = {_slot(a["slot"]): str(a["name"]) for a in document["arguments"]}
        outputs = {str(o["name"]): _slot(o["slot"]) for o in document["outputs"]}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadGraph(f"malformed graph: {error}") from error
    graph = PlainGraph(steps, held, arguments, outputs)
    _check_order(graph)
    return graph


def _check_order(graph: PlainGraph) -> None:
    known = set(graph.held) | set(graph.arguments)
    if set(graph.held) & set(graph.arguments):
        raise BadGraph("a slot is both held and an argument")
    for step in graph.steps:
        if step.out in known or any(slot not in known for slot in step.reads):
            raise BadGraph(f"slot {step.out} is written twice, or reads what is not there")
        known.add(step.out)
    if any(slot not in known for slot in graph.outputs.values()):
        raise BadGraph("an output is never computed")


def _step(item: Any) -> Step:
    shape = None if item["shape"] is None else tuple(_slot(n) for n in item["shape"])
    kwargs = {str(key): _decode(value) for key, value in item["kwargs"].items()}
    return Step(str(item["op"]), tuple(_decode(a) for a in item["args"]), kwargs, _slot(item["out"]), shape)


def _slot(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise BadGraph(f"{value!r} is no slot or size")
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        ((kind, inner),) = value.items()
        if kind == "slot":
            return Ref(_slot(inner))
        if kind == "dtype":
            return str(inner)
        if kind == "float" and inner in _SPECIAL:
            return _SPECIAL[inner]
        raise BadGraph(f"unknown argument {value!r}")
    return value


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _leaves(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _leaves(item)
    else:
        yield tree


def fill(tree: Any, values: Mapping[int, Any]) -> Any:
    """Arguments with every `Ref` replaced by its value."""
    if isinstance(tree, Ref):
        return values[tree.slot]
    if isinstance(tree, (tuple, list)):
        return type(tree)(fill(item, values) for item in tree)
    if isinstance(tree, dict):
        return {key: fill(item, values) for key, item in tree.items()}
    return tree
