"""The capture of last resort: record every ATen call while the model runs once on the example.

What torch.export refuses, mostly branches and numbers taken from data, happens here as it happens: the branch that the
example takes is recorded, numbers read out of tensors are frozen. Operations are those below autograd (a linear layer
is a transpose and an addmm), with the module whose forward was running.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from cohomcli.errors import AnalysisIncomplete
from cohomcli.precision.program import Argument, Held, Instruction, Program, Slot, map_leaves

_HALVES = (torch.float16, torch.bfloat16)


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
    """The program of one call. In-place ops are functionalised on a second run where there are any.

    Raises:
        AnalysisIncomplete: the model fails on the example, writes to its inputs or buffers in a way that cannot be
            made functional, or returns no tensor.
    """
    try:
        try:
            return _record(model, args, kwargs, functional=False)
        except _WritesInPlace:
            return _record(model, args, kwargs, functional=True)
    except _WritesInPlace as error:
        raise AnalysisIncomplete(
            f"the model writes in place with {error}", "only its weights can be analysed, or rewrite that op"
        ) from error
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise AnalysisIncomplete(
            f"the model cannot be recorded: {type(error).__name__}: {first}", "check that it runs on the example input"
        ) from error


class _WritesInPlace(Exception):
    """An op changed one of its operands."""


def _record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], functional: bool) -> Program:
    leaves, spec = pytree.tree_flatten((args, kwargs))
    recorder = _Recorder(model, leaves, _leaf_names(args, kwargs))

    def forward(*tensors: Any) -> list[Any]:
        filled = iter(tensors)
        again = [next(filled) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        inner_args, inner_kwargs = pytree.tree_unflatten(again, spec)
        recorder.paths, results = [], model(*inner_args, **inner_kwargs)
        found = pytree.tree_flatten_with_path(results)[0]
        recorder.output_paths = [path for path, _ in found]
        return [leaf for _, leaf in found]

    run: Callable[..., list[Any]] = torch.func.functionalize(forward, remove="mutations") if functional else forward
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    with torch.no_grad(), _module_hooks(model, recorder), recorder:
        results = run(*tensors)
    return recorder.program(results)


def _leaf_names(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    from cohomcli.precision.capture import output_name

    paths = [path for path, _ in pytree.tree_flatten_with_path((args, kwargs))[0]]
    return [
        output_name(path[1:]) if getattr(path[0], "idx", None) == 1 else f"arg{output_name(path[1:])}" for path in paths
    ]


@contextmanager
def _module_hooks(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the stack of qualified names of the modules whose forward is running."""

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: recorder.paths.append(name)

    def leave(*_: Any) -> None:
        recorder.paths.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every call, with tensors replaced by the slots of the calls that made them."""

    def __init__(self, model: nn.Module, leaves: list[Any], names: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.paths: list[str] = []
        self.output_paths: list[Any] = []
        self.instructions: list[Instruction] = []
        self.held: dict[int, Held] = {}
        self.arguments: dict[int, Argument] = {}
        self._slots: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # ids stay unique while their tensors live
        self._n_slots = 0
        # A tied weight goes by its last name, as in torch.export ("lm_head.weight").
        named = (*model.named_buffers(remove_duplicate=False), *model.named_parameters(remove_duplicate=False))
        self._state = {id(t): name for name, t in named}
        for position, (leaf, name) in enumerate(zip(leaves, names, strict=True)):
            if isinstance(leaf, torch.Tensor):
                slot = self._new(leaf)
                self.arguments[slot] = Argument(slot, name, position, tuple(leaf.shape), leaf.dtype)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute the call and write it down."""
        kwargs = dict(kwargs or {})
        if func._schema.is_mutable and "detach_" not in str(func):
            raise _WritesInPlace(str(func))
        # Slots first: a call may return one of its operands.
        read_args, read_kwargs = map_leaves(self._leaf, tuple(args)), map_leaves(self._leaf, kwargs)
        result = func(*args, **kwargs)
        module = self.paths[-1] if self.paths else ""
        if isinstance(result, torch.Tensor):
            self._write(func, read_args, read_kwargs, result, module)
        elif isinstance(result, (tuple, list)):
            self._write_list(func, read_args, read_kwargs, result, module)
        return result

    def _write(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: torch.Tensor, module: str
    ) -> None:
        slot = self._new(result)
        name = f"{getattr(func, '__name__', str(func)).split('.')[0]}_{slot}"
        self.instructions.append(Instruction(name, func, args, kwargs, slot, module, tuple(result.shape), result.dtype))

    def _write_list(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, module: str) -> None:
        whole = self._next()
        self.instructions.append(Instruction(f"{func.__name__}_{whole}", func, args, kwargs, whole, module))
        for n, item in enumerate(result):
            if isinstance(item, torch.Tensor):
                self._write(operator.getitem, (Slot(whole), n), {}, item, module)

    def _leaf(self, item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            if id(item) not in self._slots:
                self._hold(item)
            return Slot(self._slots[id(item)])
        return torch.float32 if isinstance(item, torch.dtype) and item in _HALVES else item

    def _hold(self, tensor: torch.Tensor) -> None:
        """A tensor nobody made during the call: a parameter, a buffer, or a constant of the model's code."""
        name, slot = self._state.get(id(tensor)), self._new(tensor)
        constant = name is None
        name = f"constant_{slot}" if name is None else name
        self.held[slot] = Held(slot, name, tensor.detach(), name.rpartition(".")[0], constant)

    def _next(self) -> int:
        self._n_slots += 1
        return self._n_slots - 1

    def _new(self, tensor: torch.Tensor) -> int:
        self._alive.append(tensor)
        self._slots[id(tensor)] = self._next()
        return self._slots[id(tensor)]

    def program(self, results: list[Any]) -> Program:
        """What was written down, with the floating-point tensors among `results` as outputs."""
        from cohomcli.precision.capture import output_name

        outputs = tuple(
            (output_name(path), self._slots[id(value)])
            for path, value in zip(self.output_paths, results, strict=True)
            if isinstance(value, torch.Tensor) and value.is_floating_point() and id(value) in self._slots
        )
        return Program(tuple(self.instructions), tuple(self.held.values()), tuple(self.arguments.values()), outputs)
