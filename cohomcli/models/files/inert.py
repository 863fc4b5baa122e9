"""An inert pickle machine: it runs the opcodes that move data and turns every call into a description.

The opcodes and their arguments are decoded by the standard library's `pickletools.genops`, which executes nothing.
There is no way from here to a class or function: a global is a `Ref` (two strings), a call is an `Inert`, and the few
constructors in `rebuild.KNOWN` are our own functions that check plain numbers and return plain data.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from cohomcli.models.files.limits import Limits
from cohomcli.models.files.numpystubs import ArrayStub, DtypeStub
from cohomcli.models.files.objects import BadPickle, Budget, Inert, OpaqueKey, Ref
from cohomcli.models.files.rebuild import KNOWN
from cohomcli.models.files.source import Parseable, Source, parser_stream

Persistent = Callable[[object], object]

_PUSH_ARGUMENT = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
        "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    }
)  # fmt: skip
_PUSH_CONSTANT: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_KEY_TYPES = (str, bytes, bool, int, float, type(None))
_MAX_KEY_BITS = 64


def no_persistent_objects(_: object) -> object:
    """The `persistent` function of a plain pickle: it has no storages outside itself."""
    raise BadPickle("refers to data outside itself")


def read_pickle(
    source: Source, limits: Limits, persistent: Persistent, offset: int = 0, nested: bool = False
) -> tuple[Any, int]:
    """Run one pickle program from `offset`; returns its value and the position after it.

    `persistent` turns a persistent id (plain data) into a value; `nested` says that it lies inside another pickle.

    Raises:
        InputRefused: not a pickle, damaged, cut short, or larger than `limits` allow.
    """
    stream = parser_stream(source, offset)
    machine = _Machine(Budget(2 * source.size, limits, nested), persistent, limits)
    try:
        value = machine.run(stream, source.size)
    except BadPickle as error:
        raise source.corrupt(f"its pickle {error}") from error
    except (ValueError, OverflowError) as error:  # how pickletools reports damaged opcodes
        raise source.corrupt("its pickle is damaged or cut short") from error
    return value, stream.tell()


class _Machine:
    """One run: a stack of plain data, the positions of open marks, and the memo."""

    def __init__(self, budget: Budget, persistent: Persistent, limits: Limits) -> None:
        self._budget, self._persistent, self._limits = budget, persistent, limits
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._floor = 0  # the stack below the last mark is out of reach
        self._memo: dict[int, Any] = {}

    def run(self, stream: Parseable, size: int) -> Any:
        """The value that the program in `stream`, of `size` bytes, leaves when it stops."""
        stack, most = self._stack, self._limits.max_opcodes
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            name = opcode.name
            if count >= most:
                raise BadPickle(f"has more than {most:,} instructions")
            if name in _PUSH_ARGUMENT:
                if type(argument) is str and len(argument) > self._limits.max_text:
                    raise BadPickle("holds a string that is too long")
                stack.append(argument)
            elif name in _PUSH_CONSTANT:
                stack.append(_PUSH_CONSTANT[name])
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            elif name == "STOP":
                break
            elif name == "FRAME" and int(argument or 0) > size - stream.tell():
                raise BadPickle("claims a frame larger than the file")
            elif name not in ("PROTO", "FRAME"):
                # EXT1..4 (a registry of classes) and out-of-band buffers: no model file has them
                raise BadPickle(f"uses the instruction {name}, which no model file needs")
        if len(stack) != 1 or self._marks:
            raise BadPickle("leaves an unfinished stack")
        return stack[0]

    def _pop(self) -> Any:
        if len(self._stack) <= self._floor:
            raise BadPickle("takes more from its stack than it put there")
        return self._stack.pop()

    def _top(self) -> Any:
        if len(self._stack) <= self._floor:
            raise BadPickle("uses an empty stack")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise BadPickle("closes a mark it never opened")
        at = self._marks.pop()
        self._floor = self._marks[-1] if self._marks else 0
        values = self._stack[at:]
        del self._stack[at:]
        return values

    def mark(self, _: Any) -> None:
        """Open a mark."""
        if len(self._marks) >= self._limits.max_nesting:
            raise BadPickle("is nested too deeply")
        self._floor = len(self._stack)
        self._marks.append(self._floor)

    def pop(self, _: Any) -> None:
        """Drop the top of the stack, or an empty mark."""
        if self._marks and self._floor == len(self._stack):
            self._pop_mark()
        else:
            self._pop()

    def pop_mark(self, _: Any) -> None:
        """Drop everything above the last mark."""
        self._pop_mark()

    def duplicate(self, _: Any) -> None:
        """Push the top of the stack again."""
        self._stack.append(self._top())

    def put(self, index: int) -> None:
        """Remember the top of the stack."""
        self._memo[index] = self._top()

    def memoize(self, _: Any) -> None:
        """Remember the top of the stack under the next number."""
        self._memo[len(self._memo)] = self._top()

    def get(self, index: int) -> None:
        """Push a remembered value."""
        if index not in self._memo:
            raise BadPickle("asks for a value it never stored")
        self._stack.append(self._memo[index])

    def new_list(self, _: Any) -> None:
        """Push an empty list; sets are lists here, for hashing what a stranger chose can be made slow."""
        self._stack.append([])

    def new_dict(self, _: Any) -> None:
        """Push an empty dict."""
        self._stack.append({})

    def list_of_mark(self, _: Any) -> None:
        """A list of everything above the mark."""
        self._stack.append(self._pop_mark())

    def tuple_of_mark(self, _: Any) -> None:
        """A tuple of everything above the mark."""
        self._stack.append(tuple(self._pop_mark()))

    def tuple_of(self, count: int) -> None:
        """A tuple of the top `count` values."""
        stack = self._stack
        if len(stack) - self._floor < count:
            raise BadPickle("takes more from its stack than it put there")
        stack[-count:] = [tuple(stack[-count:])]

    def dict_of_mark(self, _: Any) -> None:
        """A dict of the pairs above the mark."""
        values = self._pop_mark()
        self._stack.append({})
        _set_items(self._stack[-1], values)

    def append(self, _: Any) -> None:
        """Append one value to the list below it."""
        value = self._pop()
        _members(self._top()).append(value)

    def appends(self, _: Any) -> None:
        """Append everything above the mark to the list below it."""
        values = self._pop_mark()
        _members(self._top()).extend(values)

    def set_item(self, _: Any) -> None:
        """Store one pair in the mapping below it."""
        value, key = self._pop(), self._pop()
        _set_items(self._top(), [key, value])

    def set_items(self, _: Any) -> None:
        """Store the pairs above the mark in the mapping below it."""
        values = self._pop_mark()
        _set_items(self._top(), values)

    def refer(self, argument: str) -> None:
        """Push a global's name (pickletools joins module and name by a space)."""
        module, _, name = argument.partition(" ")
        self._stack.append(Ref(module, name))

    def refer_stack(self, _: Any) -> None:
        """Push a global whose name is on the stack."""
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise BadPickle("names a global by something other than text")
        self._stack.append(Ref(module, name))

    def call(self, _: Any) -> None:
        """REDUCE: a call that does not take place."""
        arguments, function = self._pop(), self._pop()
        self._stack.append(self._describe(function, arguments))

    def construct(self, _: Any) -> None:
        """NEWOBJ: a constructor that does not run."""
        self.call(None)

    def construct_with_keywords(self, _: Any) -> None:
        """NEWOBJ_EX: a constructor with keywords that does not run."""
        keywords, arguments, function = self._pop(), self._pop(), self._pop()
        self._stack.append(Inert(function, (arguments, keywords)))

    def old_instance(self, argument: str) -> None:
        """INST: a call that does not take place, the oldest form."""
        arguments = tuple(self._pop_mark())
        self.refer(argument)
        self._stack.append(self._describe(self._pop(), arguments))

    def old_object(self, _: Any) -> None:
        """OBJ: a call that does not take place, the class above the mark."""
        values = self._pop_mark()
        if not values:
            raise BadPickle("builds an object of no class")
        self._stack.append(self._describe(values[0], tuple(values[1:])))

    def build(self, _: Any) -> None:
        """BUILD: keep the state; no `__setstate__` and no `__dict__` is touched."""
        state = self._pop()
        target = self._top()
        if isinstance(target, (ArrayStub, DtypeStub)):
            target.finish(state, self._budget)
            return
        if not isinstance(target, Inert):
            return  # attributes of an OrderedDict or a tensor: no weight is among them
        if isinstance(target.state, dict) and isinstance(state, dict):
            self._budget.charge(len(state))
            target.state.update(state)
        else:
            target.state = state

    def persistent_text(self, argument: str) -> None:
        """PERSID: an id in text."""
        self._stack.append(self._persistent(argument))

    def persistent(self, _: Any) -> None:
        """BINPERSID: an id on the stack."""
        self._stack.append(self._persistent(self._pop()))

    def _describe(self, function: object, arguments: object) -> object:
        if not isinstance(arguments, tuple):
            raise BadPickle("calls something with arguments that are no tuple")
        known = KNOWN.get((function.module, function.name)) if isinstance(function, Ref) else None
        return known(arguments, self._budget) if known else Inert(function, arguments)


def _members(target: object) -> list[Any]:
    if isinstance(target, list):
        return target
    if isinstance(target, Inert):
        return target.members
    raise BadPickle("appends to something that is no list")


def _set_items(target: object, values: list[Any]) -> None:
    mapping = target.items if isinstance(target, Inert) else target
    if not isinstance(mapping, dict) or len(values) % 2:
        raise BadPickle("stores pairs in something that is no mapping")
    for key, value in zip(values[::2], values[1::2], strict=True):
        mapping[_key(key)] = value


def _key(key: object) -> object:
    if isinstance(key, _KEY_TYPES) and not (isinstance(key, int) and key.bit_length() > _MAX_KEY_BITS):
        return key
    return OpaqueKey(key)


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark, "POP": _Machine.pop, "POP_MARK": _Machine.pop_mark, "DUP": _Machine.duplicate,
    "PUT": _Machine.put, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put, "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get, "BINGET": _Machine.get, "LONG_BINGET": _Machine.get,
    "EMPTY_LIST": _Machine.new_list, "EMPTY_SET": _Machine.new_list, "LIST": _Machine.list_of_mark,
    "FROZENSET": _Machine.list_of_mark, "APPEND": _Machine.append, "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends, "EMPTY_DICT": _Machine.new_dict, "DICT": _Machine.dict_of_mark,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_items, "TUPLE": _Machine.tuple_of_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1), "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "GLOBAL": _Machine.refer, "STACK_GLOBAL": _Machine.refer_stack, "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.construct, "NEWOBJ_EX": _Machine.construct_with_keywords, "INST": _Machine.old_instance,
    "OBJ": _Machine.old_object, "BUILD": _Machine.build, "PERSID": _Machine.persistent_text,
    "BINPERSID": _Machine.persistent,
}  # fmt: skip
