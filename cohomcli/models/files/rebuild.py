"""The few functions that torch and NumPy pickles call, replaced by ours: numbers in, descriptions out.

Allowlist by exact module and name. Everything that is not here stays an `Inert` description of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cohomcli.models.files.numpystubs import ArrayStub, DtypeStub, array
from cohomcli.models.files.objects import (
    ITEM_BYTES,
    BadPickle,
    Budget,
    Inert,
    Ref,
    StorageSpec,
    TensorSpec,
    Unread,
    lengths,
)

Rebuilder = Callable[[tuple[Any, ...], Budget], object]

# torch's typed storage classes; newer element types come as UntypedStorage and name their type with the tensor.
STORAGE_TYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
}  # fmt: skip
_STORAGE_MODULES = ("torch", "torch.storage", "torch.cuda")


def storage_type(value: object) -> tuple[bool, str | None]:
    """Whether `value` names a storage class whose bytes we understand, and the element type it implies."""
    if not isinstance(value, Ref) or value.module not in _STORAGE_MODULES:
        return False, None
    if value.name == "UntypedStorage":
        return True, None
    return value.name in STORAGE_TYPES, STORAGE_TYPES.get(value.name)


def storage(kind: object, numel: object, fill: Callable[[memoryview], None] | None) -> StorageSpec | Unread:
    """Describe a storage of `numel` elements, `fill` copying its bytes.

    Raises:
        BadPickle: the count is not a count.
    """
    known, dtype = storage_type(kind)
    if not known:
        return Unread("a quantised or unknown storage")
    (count,) = lengths((numel,))
    return StorageSpec(dtype, count * (ITEM_BYTES[dtype] if dtype else 1), fill)


def _tensor(arguments: tuple[Any, ...], _: Budget) -> object:
    """`_rebuild_tensor(_v2)(storage, offset, size, stride, requires_grad, hooks, metadata)`."""
    _at_least(arguments, 4)
    held = arguments[0]
    if isinstance(held, Unread):
        return held
    return _view(held, held.dtype if isinstance(held, StorageSpec) else None, arguments[1:4])


def _tensor_of_type(arguments: tuple[Any, ...], _: Budget) -> object:
    """`_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata)`."""
    _at_least(arguments, 7)
    dtype = arguments[6]
    name = dtype.name if isinstance(dtype, Ref) and dtype.module == "torch" else None
    if name not in ITEM_BYTES:
        return Unread(f"a tensor of type {name or 'unknown'}")
    return _view(arguments[0], name, arguments[1:4])


def _view(held: object, dtype: str | None, geometry: tuple[Any, ...]) -> object:
    if not isinstance(held, StorageSpec) or dtype is None:
        raise BadPickle("makes a tensor of something that is no storage")
    (offset,) = lengths((geometry[0],))
    shape, stride = lengths(geometry[1]), lengths(geometry[2])
    if len(shape) != len(stride):
        raise BadPickle("gives a tensor an impossible shape")
    return TensorSpec(held, dtype, offset, shape, stride)


def _first(arguments: tuple[Any, ...], _: Budget) -> object:
    """A wrapper around data that needs no wrapper here: `Parameter`, `torch.Size`, TorchScript's type tags."""
    _at_least(arguments, 1)
    return arguments[0]


def _from_type(arguments: tuple[Any, ...], budget: Budget) -> object:
    """`_rebuild_from_type_v2(function, class, args, state)`: a tensor with attributes, or of a subclass."""
    _at_least(arguments, 3)
    function, _, inner = arguments[:3]
    known = KNOWN.get((function.module, function.name)) if isinstance(function, Ref) else None
    if known is None or not isinstance(inner, tuple):
        return Unread("a tensor subclass")
    made = known(inner, budget)
    return made if isinstance(made, (TensorSpec, Unread)) else Unread("a tensor subclass")


def _sequence(arguments: tuple[Any, ...], _: Budget) -> object:
    """`set`, `frozenset`, `list`, `tuple` of one sequence: the sequence itself, uncopied."""
    if not arguments:
        return []
    return arguments[0] if isinstance(arguments[0], (list, tuple)) else Unread("an unknown sequence")


def _mapping(arguments: tuple[Any, ...], budget: Budget) -> object:
    """`OrderedDict()`, `defaultdict(factory)`, `Counter({...})`, or an OrderedDict of pairs (Python 2)."""
    given = arguments[-1] if arguments else None
    if isinstance(given, dict):
        return given
    pairs = given if isinstance(given, list) else []
    budget.charge(len(pairs))
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise BadPickle("builds a mapping of something that is no list of pairs")
    return {pair[0]: pair[1] for pair in pairs}


def _bytes(arguments: tuple[Any, ...], budget: Budget) -> object:
    """`_codecs.encode(text, "latin1")`, `bytearray(bytes)`: how old protocols write bytes."""
    given = arguments[0] if arguments else b""
    if isinstance(given, (bytes, bytearray)):
        return given
    if not isinstance(given, str):
        raise BadPickle("makes bytes of something that is no text")
    budget.charge(len(given))
    return given.encode("latin-1")


def _array(_: tuple[Any, ...], __: Budget) -> object:
    """`numpy.core.multiarray._reconstruct(class, (0,), b"b")`."""
    return ArrayStub()


def _array_from_buffer(arguments: tuple[Any, ...], _: Budget) -> object:
    """`numpy.core.numeric._frombuffer(buffer, dtype, shape, order)`: pickle protocol 5."""
    _at_least(arguments, 4)
    data, dtype, shape, order = arguments[:4]
    made = ArrayStub()
    made.tensor = array(data, dtype, shape, order == "F")
    return made


def _dtype(arguments: tuple[Any, ...], _: Budget) -> object:
    _at_least(arguments, 1)
    return DtypeStub(arguments[0])


def _storage_in_bytes(arguments: tuple[Any, ...], budget: Budget) -> object:
    """`torch.storage._load_from_bytes(data)`: how plain pickle writes a tensor's storage, a torch file in bytes."""
    from cohomcli.models.files.torchfile import read_nested_storage

    _at_least(arguments, 1)
    data = arguments[0]
    if not isinstance(data, (bytes, bytearray)) or budget.nested:
        raise BadPickle("holds a storage in an unknown form")
    budget.charge(len(data))
    return read_nested_storage(bytes(data), budget.limits)


def _bare(why: str) -> Rebuilder:
    def rebuild(_: tuple[Any, ...], __: Budget) -> object:
        return Unread(why)

    return rebuild


def _reconstructor(arguments: tuple[Any, ...], _: Budget) -> object:
    """`copyreg._reconstructor(class, base, state)`: protocols 0 and 1 make instances so."""
    _at_least(arguments, 1)
    return Inert(arguments[0], arguments[1:])


def _at_least(arguments: tuple[Any, ...], count: int) -> None:
    if len(arguments) < count:
        raise BadPickle("calls a tensor constructor with too few arguments")


KNOWN: dict[tuple[str, str], Rebuilder] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_type,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _first,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _first,
    ("torch._utils", "_rebuild_xla_tensor"): _first,
    ("torch.nn.parameter", "Parameter"): _first,
    ("torch.nn.parameter", "Buffer"): _first,
    ("torch._tensor", "_rebuild_from_type"): _from_type,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.tensor", "_rebuild_from_type"): _from_type,
    ("torch._utils", "_rebuild_sparse_tensor"): _bare("a sparse tensor"),
    ("torch._utils", "_rebuild_nested_tensor"): _bare("a nested tensor"),
    ("torch._utils", "_rebuild_qtensor"): _bare("a quantised tensor"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _bare("a meta tensor, which has no data"),
    ("torch._utils", "_rebuild_wrapper_subclass"): _bare("a tensor subclass"),
    ("torch.storage", "_load_from_bytes"): _storage_in_bytes,
    ("torch", "Size"): _first,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("_codecs", "encode"): _bytes,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copy_reg", "_reconstructor"): _reconstructor,
    **{
        (module, name): made
        for module in ("builtins", "__builtin__")
        for name, made in {
            "set": _sequence,
            "frozenset": _sequence,
            "list": _sequence,
            "tuple": _sequence,
            "dict": _mapping,
            "bytearray": _bytes,
            "bytes": _bytes,
        }.items()
    },
    **{
        (f"{package}.{module}", name): made
        for package in ("numpy.core", "numpy._core")
        for module, name, made in (
            ("multiarray", "_reconstruct", _array),
            ("numeric", "_frombuffer", _array_from_buffer),
        )
    },
    ("numpy", "dtype"): _dtype,
}
