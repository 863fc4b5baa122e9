"""Rebuild the program of a torch.export archive as an fx module from its JSON graph, without torch.export.load.

Only the ATen operators of `atenlist`, pure functions of tensors and numbers, are ever looked up; arguments are plain
values. A graph with anything else (control flow, custom operators) is left alone and only its weights are used.
Schema: `torch._export.serde.schema`, version 8.
"""

from __future__ import annotations

import keyword
import operator
import re
from typing import Any

import torch
from torch import fx, nn

from cohomcli.errors import InputRefused
from cohomcli.models.files.atenlist import PURE_OPERATORS
from cohomcli.models.files.exported import SCALAR_TYPES
from cohomcli.models.files.modelfile import ModelFile
from cohomcli.models.files.source import short
from cohomcli.models.files.tensors import TORCH_TYPES
from cohomcli.models.wording import first_line

_TARGET = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_PYTHON = {name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "ge", "le", "eq")}
_MEMORY_FORMATS = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format,
}  # fmt: skip
# Regions with a mode of their own, and which argument says whether the mode is on; off, they are transparent here.
_REGIONS = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled": 0,
    "torch.ops.higher_order.wrap_with_autocast": 2,
}
_MAX_REGIONS = 8
_INFINITIES = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
_SCALARS: dict[str, type] = {"as_int": int, "as_bool": bool, "as_string": str}
_LISTS: dict[str, type] = {"as_ints": int, "as_bools": bool, "as_strings": str}


class _NotRunnable(ValueError):
    """The graph uses something outside the list; the message completes "this exported program ..."."""


def build_exported(file: ModelFile) -> fx.GraphModule:
    """The program as a module that takes the exported inputs and returns its user outputs (a tuple when several).

    Node names are those of the archive; `node.meta["nn_module_stack"]` is the module stack as torch.export keeps it.

    Raises:
        InputRefused: the program uses operators outside the list, or its graph is damaged.
    """
    try:
        return _Builder(file).build()
    except _NotRunnable as error:
        raise InputRefused(
            f"the exported program of {str(file.path)!r} {error}", "give its code with --model-code"
        ) from error


class _Builder:
    """One pass over the serialised graph; `env` maps value names to fx nodes."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._env: dict[str, fx.Node] = {}
        self._parameters: dict[str, nn.Parameter] = {}

    def build(self) -> fx.GraphModule:
        """Build and check the module."""
        try:
            program = (self._file.graph or {})["graph_module"]
            for spec in program["signature"]["input_specs"]:
                self._input(spec)
            self._nodes(program["graph"]["nodes"], 0)
            self._output(program)
        except _NotRunnable:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, StopIteration, RecursionError) as error:
            raise _NotRunnable(f"has a damaged graph ({first_line(error)})") from error
        module = fx.GraphModule(self._root, self._graph)
        self._graph.lint()
        return module.eval()

    def _input(self, spec: dict[str, Any]) -> None:
        (kind, body), *_ = spec.items()
        if kind == "user_input" and "as_tensor" in body["arg"]:
            name = body["arg"]["as_tensor"]["name"]
            if not _is_name(name) or name == "self":
                raise _NotRunnable(f"has an input called {short(name)}")
            self._env[name] = self._graph.placeholder(name)
        elif kind in ("parameter", "buffer", "tensor_constant"):
            name = body[f"{kind}_name"]
            self._attach(name, is_parameter=kind == "parameter")
            self._env[body["arg"]["name"]] = self._graph.get_attr(name)
        elif kind != "user_input":  # a plain value given at export time is already inside the graph
            raise _NotRunnable(f"takes an input of the kind {kind!r}")

    def _attach(self, name: str, is_parameter: bool) -> None:
        """Hang a stored tensor into the module tree under its dotted name."""
        value = self._file.tensors.get(name, self._file.extras.get(name))
        parts = name.split(".")
        if value is None:
            raise _NotRunnable(f"needs the tensor {short(name)}, which was not read")
        if hasattr(fx.GraphModule, parts[0]) or not all(_is_name(part) or part.isdecimal() for part in parts):
            raise _NotRunnable(f"has a tensor called {short(name)}")
        owner = self._root
        for part in parts[:-1]:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if is_parameter:  # names that were one parameter when the program was saved are one again
            first = next((group[0] for group in self._file.tied if name in group), name)
            made = self._parameters.setdefault(first, nn.Parameter(value, requires_grad=value.is_floating_point()))
            owner.register_parameter(parts[-1], made)
        else:
            owner.register_buffer(parts[-1], value)

    def _nodes(self, nodes: list[dict[str, Any]], depth: int) -> None:
        for node in nodes:
            if node["target"] in _REGIONS:
                self._region(node, depth)
            else:
                self._node(node)

    def _region(self, node: dict[str, Any], depth: int) -> None:
        """A region without gradients or autocast computes what its graph computes: it is put in its place."""
        arguments = [item["arg"] for item in node["inputs"]]
        at = next(index for index, argument in enumerate(arguments) if "as_graph" in argument)
        if depth >= _MAX_REGIONS or arguments[_REGIONS[node["target"]]] != {"as_bool": False}:
            raise _NotRunnable("switches autocast or gradients on inside")
        inner = arguments[at]["as_graph"]["graph"]
        outside = self._env
        given = [self._value(argument) for argument in arguments[at + 1 :]]
        names = [next(iter(item.values()))["name"] for item in inner["inputs"]]
        self._env = dict(zip(names, given, strict=True))
        self._nodes(inner["nodes"], depth + 1)
        made = [self._value(output) for output in inner["outputs"]]
        self._env = outside
        outputs = node["outputs"]
        if len(outputs) == 1 and "as_tensors" in outputs[0]:
            outputs = [{"as_tensor": item} for item in outputs[0]["as_tensors"]]
        for output, value in zip(outputs, made, strict=True):
            self._bind(output, value)

    def _node(self, node: dict[str, Any]) -> None:
        target, schema = self._target(node["target"])
        # Python's own operators have no schema: their arguments are nameless and in order
        named = schema is not None
        given = {item["name"] if named else str(i): self._value(item["arg"]) for i, item in enumerate(node["inputs"])}
        args, kwargs = _arrange(given, schema)
        made = self._graph.call_function(target, args, kwargs)
        made.meta["nn_module_stack"] = _stack(node.get("metadata", {}))
        outputs = node["outputs"]
        if len(outputs) == 1 and "as_tensors" not in outputs[0]:
            self._bind(outputs[0], made)
            return
        parts = outputs[0]["as_tensors"] if len(outputs) == 1 else None
        for index, output in enumerate(parts if parts is not None else outputs):
            self._bind({"as_tensor": output} if parts is not None else output, self._pick(made, index))

    def _pick(self, made: fx.Node, index: int) -> fx.Node:
        item = self._graph.call_function(operator.getitem, (made, index))
        item.meta["nn_module_stack"] = made.meta["nn_module_stack"]
        return item

    def _bind(self, output: dict[str, Any], made: fx.Node) -> None:
        (kind, body), *_ = output.items()
        if kind == "as_tensor":
            self._env[body["name"]] = made
        elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            self._env[body["as_name"]] = made
        elif kind != "as_none":
            raise _NotRunnable(f"has an output of the kind {short(kind)}")

    def _target(self, text: str) -> tuple[Any, list[Any] | None]:
        """The operator a node calls and its arguments in order."""
        match = _TARGET.fullmatch(text)
        if match and match[1] in PURE_OPERATORS:
            overload = getattr(getattr(torch.ops.aten, match[1]), match[2])
            return overload, list(overload._schema.arguments)
        name = text.removeprefix("_operator.")
        if text.startswith("_operator.") and name in _PYTHON:
            return _PYTHON[name], None
        raise _NotRunnable(f"calls {short(text)}, which is not on the list of operators that are run")

    def _value(self, argument: dict[str, Any]) -> Any:
        """A plain Python value, or the fx node, for one serialised argument."""
        (kind, body), *_ = argument.items()
        if kind in _SCALARS:
            return _checked(body, _SCALARS[kind])
        if kind in _LISTS:
            return [_checked(item, _LISTS[kind]) for item in body]
        if kind == "as_none":
            return None
        if kind == "as_tensor":
            return self._env[body["name"]]
        if kind in ("as_tensors", "as_optional_tensors"):
            return [self._value({"as_tensor": item} if kind == "as_tensors" else item) for item in body]
        if kind == "as_optional_tensor":
            return self._value(body)
        if kind in ("as_float", "as_floats"):
            return [_float(item) for item in body] if kind == "as_floats" else _float(body)
        if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            return self._env[body["as_name"]] if "as_name" in body else next(iter(body.values()))
        if kind == "as_sym_ints":
            return [self._value({"as_sym_int": item}) for item in body]
        if kind == "as_scalar_type":
            return TORCH_TYPES[SCALAR_TYPES[body]]
        if kind == "as_memory_format":
            return _MEMORY_FORMATS[body]
        if kind == "as_layout":
            return torch.strided
        if kind == "as_device":
            return torch.device("cpu")
        raise _NotRunnable(f"has an argument of the kind {short(kind)}")

    def _output(self, program: dict[str, Any]) -> None:
        outputs = program["graph"]["outputs"]
        kept = [
            self._value(output)
            for output, spec in zip(outputs, program["signature"]["output_specs"], strict=True)
            if "user_output" in spec
        ]
        self._graph.output(kept[0] if len(kept) == 1 else tuple(kept))


def _arrange(given: dict[str, Any], schema: list[Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments as far as the schema's order is given without a gap, the rest by name."""
    if schema is None:
        return tuple(given.values()), {}
    leading: list[Any] = []
    for argument in schema:
        if argument.kwarg_only or argument.name not in given:
            break
        leading.append(given[argument.name])
    names = [argument.name for argument in schema[len(leading) :]]
    rest = {name: given[name] for name in names if name in given}
    if len(leading) + len(rest) != len(given):
        raise _NotRunnable("gives an operator arguments it does not have")
    return tuple(leading), rest


def _stack(metadata: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """`"key,path,class;..."` as torch.export keeps it: key -> (path, class)."""
    text = metadata.get("nn_module_stack", "")
    frames = [frame.split(",", 2) for frame in text.split(";")] if isinstance(text, str) else []
    return {frame[0]: (frame[1], frame[2]) for frame in frames if len(frame) == 3}


def _is_name(name: object) -> bool:
    """Whether `name` can stand in the Python code that fx writes from a graph, as a name and as nothing else."""
    return isinstance(name, str) and name.isascii() and name.isidentifier() and not keyword.iskeyword(name)


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _NotRunnable("has a damaged argument")
    return value


def _float(value: Any) -> float:
    return _INFINITIES[value] if isinstance(value, str) else float(value)
