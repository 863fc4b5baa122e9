"""From a module and example inputs to a program and its computation graph, by torch.export, or else by watching.

The shapes are those of the example: every later input must have them (`precision.inputs` cuts and pads texts to one
length). The module is captured as it computes in float32; casts to 16 bits in its own code are dropped, because the
plan is what chooses formats. For one operation per attention step, load transformers models with eager attention.
"""

from __future__ import annotations

import io
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.precision.program import Argument, Held, Instruction, Program, Slot, map_leaves, without_dead_code
from cohomcli.precision.spec import ComputationGraph
from cohomcli.precision.vertices import Layout, build_graph

CACHE_OUTPUT = re.compile(r"past_key_values|cache|mems")
_HALVES = (torch.float16, torch.bfloat16)
_IGNORED = re.compile(r"aten\._assert|aten\.sym_|_guards_fn")


@dataclass(frozen=True)
class Example:
    """One call of the model: positional and keyword arguments, tensors or nests of them."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Captured:
    """A model as a computation graph (vertices, for the mathematics) and a program (for running it).

    `layout` ties both together. `fallback` is empty when torch.export worked; otherwise it says why it did not, and
    the operations were recorded while the model ran on the example: branches the example did not take are unknown.
    """

    graph: ComputationGraph
    program: Program
    layout: Layout
    example: Example
    fallback: str = ""

    def bind(self, inputs: Example | Mapping[str, Any] | Sequence[Any]) -> dict[int, torch.Tensor]:
        """The program's argument slots filled from another call with the example's structure and shapes.

        Raises:
            UsageError: another structure, shape or dtype than the example's; names the argument.
        """
        flat = _flatten(_as_example(inputs), self.example)
        bound = {}
        for argument in self.program.arguments:
            value = flat[argument.position]
            if not isinstance(value, torch.Tensor) or (tuple(value.shape), value.dtype) != (
                argument.shape,
                argument.dtype,
            ):
                got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
                raise UsageError(
                    f"input {argument.name!r} is {got}, the model was captured with {argument.shape} {argument.dtype}",
                    "give every input the shape of the first one",
                )
            bound[argument.slot] = value
        return bound


def capture(
    model: nn.Module,
    inputs: Example | Mapping[str, Any] | Sequence[Any],
    outputs: Sequence[str] | None = None,
) -> Captured:
    """Capture `model` on one example call: a mapping is keyword arguments, a sequence positional ones.

    `outputs` names the results that count ("logits"); by default all floating-point ones but key-value caches. What
    they do not depend on is not part of the graph.

    Raises:
        UsageError: the model is in training mode, is not float32, or an output's name is unknown.
        AnalysisIncomplete: neither torch.export nor recording can capture the model; says why.
    """
    _check_model(model)
    example = _as_example(inputs)
    exported, fallback = _export(model, example)
    if exported is None:
        from cohomcli.precision.recording import record

        program = record(model, example.args, dict(example.kwargs or {}))
    else:
        program = _Reader(exported).program(example)
    program = without_dead_code(_select_outputs(program, outputs))
    graph, layout = build_graph(program)
    return Captured(graph, program, layout, example, fallback)


def _check_model(model: nn.Module) -> None:
    if model.training:
        raise UsageError("the model is in training mode", "call model.eval() first")
    for name, value in model.named_parameters():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise UsageError(
                f"parameter {name!r} is {value.dtype}", "capture the float32 model: call model.float() first"
            )


def _as_example(inputs: Example | Mapping[str, Any] | Sequence[Any]) -> Example:
    if isinstance(inputs, Example):
        return inputs
    if isinstance(inputs, Mapping):
        return Example((), dict(inputs))
    return Example(tuple(inputs))


def _flatten(call: Example, like: Example) -> list[Any]:
    """Leaves of (args, kwargs) in the order of `like`, whose keywords `call` may give in another order."""
    wanted, given = dict(like.kwargs or {}), dict(call.kwargs or {})
    if set(wanted) != set(given):
        raise UsageError(f"inputs {sorted(given)} differ from the captured {sorted(wanted)}", "pass the same arguments")
    leaves, spec = pytree.tree_flatten((call.args, {key: given[key] for key in wanted}))
    if spec != pytree.tree_flatten((like.args, wanted))[1]:
        raise UsageError("an input has another structure than the captured example", "pass the same arguments")
    return leaves


def _select_outputs(program: Program, wanted: Sequence[str] | None) -> Program:
    names = [name for name, _ in program.outputs]
    if wanted is None:
        chosen = [(name, slot) for name, slot in program.outputs if not CACHE_OUTPUT.search(name)]
    else:
        if missing := [name for name in wanted if name not in names]:
            raise UsageError(f"the model has no output {missing[0]!r}", f"its outputs: {', '.join(names)}")
        chosen = [(name, slot) for name, slot in program.outputs if name in wanted]
    if not chosen:
        raise AnalysisIncomplete("the model returns no floating-point tensor", "analyse a model with real outputs")
    return Program(program.instructions, program.held, program.arguments, tuple(chosen))


# --- torch.export -----------------------------------------------------------------------------------------------------


def _export(model: nn.Module, example: Example) -> tuple[torch.export.ExportedProgram | None, str]:
    """The exported program, or None and why there is none."""
    # torch.export warns about attributes it does not care about and prints its partial graph when it fails.
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(model, example.args, dict(example.kwargs or {}), strict=False)
            if any(_mutates(node) for graph in _graphs(exported.graph_module) for node in graph.nodes):
                exported = exported.run_decompositions({})  # functional: every in-place op becomes its pure counterpart
        except Exception as error:  # noqa: BLE001 -- whatever the model's code, dynamo or a compiler pass raises
            first = (str(error).strip().splitlines() or [""])[0]
            return None, f"torch.export failed: {type(error).__name__}: {first[:200]}"
    return exported, ""


def _graphs(module: fx.GraphModule) -> Iterator[fx.Graph]:
    """The graph and those of its submodules (bodies of no_grad and autocast regions)."""
    for child in module.modules():
        if isinstance(child, fx.GraphModule):
            yield child.graph


def _mutates(node: fx.Node) -> bool:
    """Whether a node writes to its operands; an in-place detach only drops autograd history."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable) and "detach_" not in str(node.target)


class _Reader:
    """Turns an exported program's graph into ours: numbered slots, regions inlined, placeholders told apart."""

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        self.exported = exported
        self.instructions: list[Instruction] = []
        self.n_slots = 0

    def program(self, example: Example) -> Program:
        from torch.export.graph_signature import OutputKind

        environment: dict[fx.Node, Any] = {}
        held, arguments = self._placeholders(environment, example)
        results = self._walk(self.exported.graph_module, environment)
        names = _output_names(self.exported)
        specs = self.exported.graph_signature.output_specs
        user = [r for r, spec in zip(results, specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT]
        float_slots = {i.result for i in self.instructions if i.dtype is not None and i.dtype.is_floating_point}
        outputs = tuple(
            (name, r.index)
            for name, r in zip(names, user, strict=True)
            if isinstance(r, Slot) and r.index in float_slots
        )
        return Program(tuple(self.instructions), held, arguments, outputs)

    def _slot(self) -> Slot:
        self.n_slots += 1
        return Slot(self.n_slots - 1)

    def _placeholders(
        self, environment: dict[fx.Node, Any], example: Example
    ) -> tuple[tuple[Held, ...], tuple[Argument, ...]]:
        from torch.export.graph_signature import InputKind

        nodes = [node for node in self.exported.graph.nodes if node.op == "placeholder"]
        flat = pytree.tree_flatten((example.args, dict(example.kwargs or {})))[0]
        held: list[Held] = []
        arguments: list[Argument] = []
        users = 0
        for node, spec in zip(nodes, self.exported.graph_signature.input_specs, strict=True):
            slot = environment[node] = self._slot()
            if spec.kind == InputKind.USER_INPUT:
                value = flat[users]
                if isinstance(value, torch.Tensor):
                    arguments.append(Argument(slot.index, node.name, users, tuple(value.shape), value.dtype))
                else:
                    environment[node] = value
                users += 1
            elif spec.target is not None:
                constant = spec.kind in (InputKind.CONSTANT_TENSOR, InputKind.CUSTOM_OBJ)
                held.append(
                    Held(slot.index, spec.target, self._tensor(spec.target), spec.target.rpartition(".")[0], constant)
                )
        return tuple(held), tuple(arguments)

    def _tensor(self, name: str) -> torch.Tensor:
        state, constants = self.exported.state_dict, self.exported.constants
        tensor = state[name] if name in state else constants[name]
        if not isinstance(tensor, torch.Tensor):
            raise AnalysisIncomplete(f"the model holds {name!r}, a {type(tensor).__name__} and no tensor", "remove it")
        return tensor.detach()

    def _walk(self, module: fx.GraphModule, environment: dict[fx.Node, Any], path: str = "") -> list[Any]:
        """Append the graph's instructions; returns what its output node returns, as a flat list."""
        for node in module.graph.nodes:
            if node.op == "get_attr":
                environment[node] = module.get_submodule(str(node.target))
            elif node.op == "call_function" and not _IGNORED.search(str(node.target)):
                environment[node] = self._call(node, environment, path)
            elif node.op == "output":
                return list(_resolve(node.args[0], environment))
        raise AssertionError("an fx graph ends with an output node")

    def _call(self, node: fx.Node, environment: dict[fx.Node, Any], path: str) -> Any:
        module = _module_path(node) or path
        args, kwargs = _resolve(node.args, environment), _resolve(dict(node.kwargs), environment)
        for position, argument in enumerate(args):
            if isinstance(argument, fx.GraphModule):  # wrap_with_set_grad_enabled, wrap_with_autocast
                inputs = [inner for inner in argument.graph.nodes if inner.op == "placeholder"]
                return self._walk(argument, dict(zip(inputs, args[position + 1 :], strict=True)), module)
        if node.target is operator.getitem and isinstance(args[0], (list, tuple)):
            return args[0][args[1]]
        value = node.meta["val"]
        slot = self._slot()
        shape, dtype = (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else ((), None)
        target = cast("Callable[..., Any]", node.target)  # call_function nodes hold the function itself
        self.instructions.append(Instruction(node.name, target, args, kwargs, slot.index, module, shape, dtype))
        return slot


def _resolve(tree: Any, environment: dict[fx.Node, Any]) -> Any:
    """Nodes replaced by their slots, explicit 16-bit dtypes by float32."""

    def leaf(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return environment[item]
        return torch.float32 if isinstance(item, torch.dtype) and item in _HALVES else item

    return map_leaves(leaf, tree)


def _module_path(node: fx.Node) -> str:
    """The innermost module's qualified name; repeated calls of one module ("block@1") share it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"@\d+", "", str(stack[-1][0])) if stack else ""


def _output_names(exported: torch.export.ExportedProgram) -> list[str]:
    """Names of the flat outputs: "logits" for a field, "0" for a tuple's, "output" for a bare tensor."""
    spec = exported.call_spec.out_spec
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    return [output_name(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]


def output_name(path: tuple[Any, ...]) -> str:
    """A pytree key path as a short name: "logits", "past_key_values.0.1"; "output" for the root."""
    parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
    return ".".join(parts) or "output"
