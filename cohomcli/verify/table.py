"""The table of operations that have a rigorous enclosure: one decorated function per ATen operation."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from cohomcli.verify.arrays import Unsupported

Operation = Callable[..., Any]
_TABLE: dict[str, Operation] = {}
_FILES = ("ops_shape", "ops_exact", "ops_real", "ops_linear", "ops_norm", "ops_pool")
# Overloads whose arguments mean something else than those of the operation's other overloads have entries of their own.


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Register a function under ATen names, "add" for every overload or "min.other" for one.

    The function takes the arguments of the ATen schema under the schema's names, tensors as numpy arrays.
    """

    def register(function: Operation) -> Operation:
        for name in names:
            if name in _TABLE:
                raise ValueError(f"operation {name!r} is registered twice")
            _TABLE[name] = function
        return function

    return register


def load() -> dict[str, Operation]:
    """The whole table."""
    for file in _FILES:
        import_module(f"cohomcli.verify.{file}")
    return _TABLE


def find(target: str) -> Operation:
    """The function for an ATen target such as "aten.add.Tensor".

    Raises:
        Unsupported: there is none; the message names the target.
    """
    table = load()
    namespace, _, rest = target.partition(".")
    name = rest.partition(".")[0]
    if namespace != "aten" or (rest not in table and name not in table):
        raise Unsupported(f"operation {target!r} is not in the table")
    return table.get(rest) or table[name]
