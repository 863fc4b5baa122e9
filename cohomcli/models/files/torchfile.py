"""The three files `torch.save` and `pickle.dump` write, read into plain data with tensor descriptions.

Formats as torch 2.13 writes them: a zip archive with `data.pkl` and one member per storage; the older stream of five
pickles followed by raw storages; and a plain pickle, whose storages are older streams inside bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cohomcli.errors import InputRefused
from cohomcli.models.files.archive import Archive
from cohomcli.models.files.inert import Persistent, no_persistent_objects, read_pickle
from cohomcli.models.files.limits import Limits
from cohomcli.models.files.objects import ITEM_BYTES, BadPickle, Ref, StorageSpec, Unread
from cohomcli.models.files.rebuild import storage
from cohomcli.models.files.source import Source, from_bytes, short

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read_zip_pickle(source: Source, archive: Archive, limits: Limits, pickle: str, folder: str) -> Any:
    """The plain data of one pickle inside a torch archive; its storages are the members of `folder`.

    Raises:
        InputRefused: damaged, or a storage is missing or not as long as the pickle claims.
    """
    program = from_bytes(archive.read(pickle, limits.max_pickle), source.label)
    value, _ = read_pickle(program, limits, _zip_storages(source, archive, folder))
    return value


def _zip_storages(source: Source, archive: Archive, folder: str) -> Persistent:
    order = f"{archive.root}byteorder"
    big_endian = order in archive and archive.read(order, 16) == b"big"
    known: dict[tuple[str, str | None], StorageSpec] = {}

    def find(identity: object) -> object:
        kind, key, numel = _storage_identity(identity)
        made = storage(kind, numel, None)
        if isinstance(made, Unread):
            return made
        entry = archive.entry(f"{folder}{key}")
        if entry.n_bytes != made.n_bytes:
            raise source.corrupt(f"storage {short(key)} claims {made.n_bytes:,} bytes and has {entry.n_bytes:,}")
        made.fill = lambda view: archive.read_into(entry, view)
        made.big_endian = big_endian
        return known.setdefault((key, made.dtype), made)

    return find


def _storage_identity(identity: object) -> tuple[object, str, object]:
    """Class, key and element count of ("storage", class, key, device, count, ...)."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise BadPickle("refers to something that is no storage")
    _, kind, key, _, numel = identity[:5]
    if not isinstance(key, str):
        raise BadPickle("names a storage by something other than text")
    return kind, key, numel


def read_legacy(source: Source, limits: Limits, nested: bool = False) -> Any:
    """The plain data of a stream written with `_use_new_zipfile_serialization=False`.

    Raises:
        InputRefused: damaged, cut short, or a storage is not as long as the pickle claims.
    """
    magic, at = read_pickle(source, limits, no_persistent_objects, 0, nested)
    version, at = read_pickle(source, limits, no_persistent_objects, at, nested)
    if magic != LEGACY_MAGIC or version != _LEGACY_PROTOCOL:
        raise source.corrupt("its legacy header is unknown")
    _, at = read_pickle(source, limits, no_persistent_objects, at, nested)
    storages: dict[str, StorageSpec] = {}
    value, at = read_pickle(source, limits, _legacy_storages(storages), at, nested)
    keys, at = read_pickle(source, limits, no_persistent_objects, at, nested)
    _locate(source, storages, keys, at)
    return value


def _legacy_storages(storages: dict[str, StorageSpec]) -> Persistent:
    def find(identity: object) -> object:
        if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
            return identity[1] if isinstance(identity[1], Ref) else Unread("a class of an unknown form")
        kind, key, numel = _storage_identity(identity)
        if isinstance(identity, tuple) and len(identity) > 5 and identity[5] is not None:
            raise BadPickle("uses storage views, which torch has not written since version 0.4")
        made = storage(kind, numel, None)
        if isinstance(made, Unread):
            raise BadPickle("holds a quantised or unknown storage")
        first = storages.setdefault(key, made)
        if (first.dtype, first.n_bytes) != (made.dtype, made.n_bytes):
            raise BadPickle("describes one storage in two ways")
        return first

    return find


def _locate(source: Source, storages: dict[str, StorageSpec], keys: object, at: int) -> None:
    """Find each storage behind the pickles: eight bytes of element count, then its elements, little-endian."""
    if not isinstance(keys, list) or len(keys) > len(storages):
        raise source.corrupt("its list of storages is damaged")
    for key in keys:
        spec = storages.get(key) if isinstance(key, str) else None
        if spec is None or spec.fill is not None:
            raise source.corrupt("its list of storages is damaged")
        claimed = int.from_bytes(source.read(at, 8), "little") * (ITEM_BYTES[spec.dtype] if spec.dtype else 1)
        if claimed != spec.n_bytes or at + 8 + claimed > source.size:
            raise source.corrupt(f"storage {short(key)} claims {spec.n_bytes:,} bytes that are not there")
        spec.fill = _reader(source, at + 8)
        at += 8 + spec.n_bytes


def _reader(source: Source, offset: int) -> Callable[[memoryview], None]:
    return lambda view: source.read_into(offset, view)


def read_plain(source: Source, limits: Limits) -> Any:
    """The plain data of a pickle that torch had no hand in.

    Raises:
        InputRefused: damaged, cut short, or larger than `limits` allow.
    """
    value, _ = read_pickle(source, limits, no_persistent_objects)
    return value


def read_nested_storage(data: bytes, limits: Limits) -> StorageSpec:
    """The one storage inside a torch stream that lies in the bytes of a plain pickle.

    Raises:
        BadPickle: it holds anything else.
    """
    try:
        found = read_legacy(from_bytes(data, "a storage"), limits, nested=True)
    except InputRefused as error:
        raise BadPickle("holds a damaged storage") from error
    if not isinstance(found, StorageSpec):
        raise BadPickle("holds something else where a storage should be")
    return found
