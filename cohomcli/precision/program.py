"""A captured model as a list of instructions over numbered values: what the interpreter, adjoints and scores walk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Slot:
    """Stands in an instruction's arguments for the value with this index."""

    index: int


@dataclass(frozen=True)
class Instruction:
    """One ATen call: `result` = target(*args, **kwargs), with a `Slot` wherever a value is read.

    `shape` and `dtype` describe the result; dtype is None where it is a list of tensors (split, topk, lstm).
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: int
    module: str
    shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    reads: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        found = dict.fromkeys(leaf.index for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Slot))
        object.__setattr__(self, "reads", tuple(found))

    @property
    def op(self) -> str:
        """The target as text, "aten.linear.default"."""
        return str(self.target)


@dataclass(frozen=True)
class Held:
    """A value the model holds: parameter, buffer, or a constant lifted from its code. `name` is its qualified name."""

    slot: int
    name: str
    tensor: torch.Tensor
    module: str
    constant: bool = False


@dataclass(frozen=True)
class Argument:
    """A tensor the caller passes in; `position` counts the leaves of (args, kwargs)."""

    slot: int
    name: str
    position: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Program:
    """Instructions in execution order; `outputs` are (name, slot) of the floating-point results, in their order."""

    instructions: tuple[Instruction, ...]
    held: tuple[Held, ...]
    arguments: tuple[Argument, ...]
    outputs: tuple[tuple[str, int], ...]


def leaves(tree: Any) -> Iterator[Any]:
    """Every leaf of nested tuples, lists, dicts and slices."""
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from leaves(item)
    elif isinstance(tree, dict):
        yield from leaves(list(tree.values()))
    elif isinstance(tree, slice):
        yield from leaves((tree.start, tree.stop, tree.step))
    else:
        yield tree


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nest of tuples, lists, dicts and slices with `function` applied to every leaf."""
    if isinstance(tree, (tuple, list)):
        return type(tree)([map_leaves(function, item) for item in tree])
    if isinstance(tree, dict):
        return {key: map_leaves(function, item) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*(map_leaves(function, item) for item in (tree.start, tree.stop, tree.step)))
    return function(tree)


def call(instruction: Instruction, values: Mapping[int, Any], dtype: torch.dtype = torch.float32) -> Any:
    """Execute one instruction on `values` (slot to tensor); float64 (or complex128) throughout when `dtype` is float64.

    In float32 the module's own dtypes stand, so that a replay is the module's own computation bit for bit.
    """
    wide = dtype == torch.float64

    def leaf(item: Any) -> Any:
        if isinstance(item, Slot):
            return values[item.index]
        return _WIDE.get(item, item) if wide and isinstance(item, torch.dtype) else item

    result = instruction.target(*map_leaves(leaf, instruction.args), **map_leaves(leaf, instruction.kwargs))
    return map_leaves(_widen, result) if wide else result


_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def _widen(item: Any) -> Any:
    if isinstance(item, torch.Tensor) and item.dtype in _WIDE:
        return item.to(_WIDE[item.dtype])
    return item


def last_uses(program: Program) -> list[tuple[int, ...]]:
    """For every instruction the slots that nothing reads after it; outputs are never freed."""
    kept = {slot for _, slot in program.outputs}
    seen: set[int] = set()
    freed: list[tuple[int, ...]] = []
    for instruction in reversed(program.instructions):
        touched = dict.fromkeys((*instruction.reads, instruction.result))
        freed.append(tuple(slot for slot in touched if slot not in seen and slot not in kept))
        seen.update(touched)
    return freed[::-1]


def without_dead_code(program: Program) -> Program:
    """Only what the outputs depend on."""
    alive = {slot for _, slot in program.outputs}
    kept: list[Instruction] = []
    for instruction in reversed(program.instructions):
        if instruction.result in alive:
            kept.append(instruction)
            alive.update(instruction.reads)
    held = tuple(h for h in program.held if h.slot in alive)
    arguments = tuple(a for a in program.arguments if a.slot in alive)
    return Program(tuple(kept[::-1]), held, arguments, program.outputs)
