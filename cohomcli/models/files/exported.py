"""`torch.export` archives (`.pt2`) without `torch.export.load`, which unpickles weights, constants and sample inputs.

Layout as torch 2.13 writes it (`torch.export.pt2_archive`): `models/<name>.json` is the graph; `data/weights/` and
`data/constants/` hold raw storages with a JSON table of name, storage, element type, shape and strides. Only pickled
members are skipped or, where they are torch files, read by the inert machine.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cohomcli.errors import InputRefused
from cohomcli.models.files.archive import Archive, Entry
from cohomcli.models.files.contents import Leaf, leaf
from cohomcli.models.files.limits import Limits
from cohomcli.models.files.modules import ModuleContent
from cohomcli.models.files.objects import BadPickle, StorageSpec, TensorSpec, Unread, lengths
from cohomcli.models.files.source import Source, from_bytes, short
from cohomcli.models.files.torchfile import read_zip_pickle

# `torch._export.serde.schema.ScalarType`
SCALAR_TYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16",
    29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu",
    34: "uint32", 35: "uint64",
}  # fmt: skip
_STRIDED = 7
_CALL_NUMBER = re.compile(r"@\d+$")
_OLD_LAYOUT = "serialized_exported_program.json"


def is_exported(archive: Archive) -> bool:
    """Whether an archive is one of torch.export's, of the present or the older layout."""
    return f"{archive.root}archive_format" in archive or any(name.endswith(_OLD_LAYOUT) for name in archive.entries)


def read_exported(source: Source, archive: Archive, limits: Limits) -> tuple[ModuleContent, dict[str, Any]]:
    """The tensors and the parsed graph document of the archive's one program.

    `extras` holds non-persistent buffers and constants.

    Raises:
        InputRefused: an older layout, compiled code without a graph, several programs, or damaged tables.
    """
    name = _program(source, archive)
    document = _json(source, archive, f"{archive.root}models/{name}.json", limits)
    content = ModuleContent(tree=_module_tree(document))
    for folder, prefix, target in (
        ("weights", "weight_", content.tensors),
        ("constants", "tensor_", content.extras),
    ):
        place = f"{archive.root}data/{folder}/"
        table = _json(source, archive, f"{place}{name}_{folder}_config.json", limits).get("config")
        if not isinstance(table, dict):
            raise source.corrupt(f"its table of {folder} is damaged")
        reader = _Payloads(source, archive, limits, place, prefix)
        target.update({key: reader.tensor(key, value) for key, value in table.items()})
    return content, document


def read_sample_inputs(source: Source, archive: Archive, limits: Limits) -> Any:
    """The example inputs the program was exported with, as plain data with tensor descriptions; None when absent."""
    name = f"{archive.root}data/sample_inputs/{_program(source, archive)}.pt"
    return _torch_file(source, archive.read(name, limits.max_pickle), limits) if name in archive else None


def _program(source: Source, archive: Archive) -> str:
    folder = f"{archive.root}models/"
    names = sorted(
        name.removeprefix(folder).removesuffix(".json")
        for name in archive.entries
        if name.startswith(folder) and name.endswith(".json")
    )
    if len(names) == 1:
        return names[0]
    if names:
        raise InputRefused(
            f"{source.label!r} holds {len(names)} exported programs ({', '.join(map(short, names[:3]))})",
            "export the one to analyse alone",
        )
    if any(entry.endswith(_OLD_LAYOUT) for entry in archive.entries):
        raise InputRefused(
            f"{source.label!r} has the layout of torch before 2.9", "export the model with a newer torch"
        )
    raise InputRefused(
        f"{source.label!r} holds compiled code and no graph", "give the file written by torch.export.save"
    )


def _json(source: Source, archive: Archive, name: str, limits: Limits) -> dict[str, Any]:
    try:
        document = json.loads(archive.read(name, limits.max_json))
    except (ValueError, RecursionError) as error:
        raise source.corrupt(f"{short(name)} inside it is not valid JSON") from error
    if not isinstance(document, dict):
        raise source.corrupt(f"{short(name)} inside it is not a JSON object")
    return document


class _Payloads:
    """Turns the entries of one table into tensor descriptions that share their storages."""

    def __init__(self, source: Source, archive: Archive, limits: Limits, place: str, prefix: str) -> None:
        self._source, self._archive, self._limits = source, archive, limits
        self._place, self._prefix = place, prefix
        self._storages: dict[str, StorageSpec] = {}

    def tensor(self, name: str, entry: Any) -> Leaf:
        """Describe one table entry; pickled objects other than tensors are left unread."""
        file = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(file, str):
            raise self._source.corrupt(f"the table entry of {short(name)} is damaged")
        if entry.get("use_pickle"):
            return self._pickled(file)
        meta = entry.get("tensor_meta")
        if not isinstance(meta, dict) or not file.startswith(self._prefix):
            raise self._source.corrupt(f"the table entry of {short(name)} is damaged")
        dtype = SCALAR_TYPES.get(meta["dtype"]) if isinstance(meta.get("dtype"), int) else None
        if dtype is None or meta.get("layout") != _STRIDED:
            return Unread("a tensor of an unknown type or layout")
        try:
            shape, stride = lengths(_numbers(meta.get("sizes"))), lengths(_numbers(meta.get("strides")))
            (offset,) = lengths(_numbers([meta.get("storage_offset")]))
        except BadPickle as error:
            raise self._source.corrupt(f"tensor {short(name)} has an impossible shape") from error
        if len(shape) != len(stride):
            raise self._source.corrupt(f"tensor {short(name)} has an impossible shape")
        return TensorSpec(self._storage(file), dtype, offset, shape, stride)

    def _storage(self, file: str) -> StorageSpec:
        if file not in self._storages:
            entry = self._archive.entry(f"{self._place}{file}")
            order = f"{self._archive.root}byteorder"
            swapped = order in self._archive and self._archive.read(order, 16) == b"big"
            self._storages[file] = StorageSpec(None, entry.n_bytes, self._filler(entry), swapped)
        return self._storages[file]

    def _filler(self, entry: Entry) -> Any:
        return lambda view: self._archive.read_into(entry, view)

    def _pickled(self, file: str) -> Leaf:
        """A tensor subclass is stored as a torch file and read inertly; other objects are named and left alone."""
        if not file.startswith(self._prefix):
            return Unread("a pickled object, which is not read")
        data = self._archive.read(f"{self._place}{file}", self._limits.max_pickle)
        found = leaf(_torch_file(self._source, data, self._limits))
        return found if found is not None else Unread("a pickled object, which is not read")


def _torch_file(source: Source, data: bytes, limits: Limits) -> Any:
    inner = from_bytes(data, source.label)
    archive = Archive(inner, limits)
    return read_zip_pickle(inner, archive, limits, f"{archive.root}data.pkl", f"{archive.root}data/")


def _numbers(values: Any) -> list[Any]:
    """Plain integers of `[{"as_int": 3}, ...]`; a symbolic size has none and is refused by the caller."""
    if not isinstance(values, list):
        raise BadPickle("gives a tensor an impossible shape")
    return [value.get("as_int") if isinstance(value, dict) else None for value in values]


def _module_tree(document: dict[str, Any]) -> dict[str, str]:
    """Module path -> class, from the call stacks that every node of the graph carries."""
    tree: dict[str, str] = {}
    program = document.get("graph_module")
    graph = program.get("graph") if isinstance(program, dict) else None
    nodes = graph.get("nodes") if isinstance(graph, dict) else None
    for node in nodes if isinstance(nodes, list) else ():
        metadata = node.get("metadata") if isinstance(node, dict) else None
        stack = metadata.get("nn_module_stack") if isinstance(metadata, dict) else None
        for frame in stack.split(";") if isinstance(stack, str) else ():
            parts = frame.split(",", 2)
            if len(parts) == 3:
                tree.setdefault(_CALL_NUMBER.sub("", parts[1]), parts[2])
    return tree
