"""Strict reading of zip archives: one directory, no overlaps, no surprises (PKWARE APPNOTE 6.3.10).

Python's `zipfile` forgives prefixes, lying counts, overlaps and duplicate names, and builds an object per directory
entry before anyone can count them. A model file has no use for any of that, so this reader refuses what it forgives.
"""

from __future__ import annotations

import stat
import struct
import zlib
from dataclasses import dataclass

from cohomcli.models.files.limits import Limits
from cohomcli.models.files.source import Source, short

STORED, DEFLATED = 0, 8
_ENCRYPTED, _SIZES_FOLLOW = 0x0001, 0x0008
_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_FORMAT, _END64_FORMAT, _LOCATOR_FORMAT = "<4s4H2LH", "<4sQ2H2L4Q", "<4sLQL"
_CENTRAL, _CENTRAL_FORMAT = b"PK\x01\x02", "<4s6H3L5H2L"
_LOCAL, _LOCAL_FORMAT = b"PK\x03\x04", "<4s5H3L2H"
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One member: where its data starts, how many bytes lie there (`n_stored`) and how many it holds (`n_bytes`)."""

    name: str
    header: int
    start: int
    n_stored: int
    n_bytes: int
    method: int
    crc: int


@dataclass(frozen=True)
class _Directory:
    start: int
    size: int
    count: int


class Archive:
    """The checked directory of a zip archive. Members are read one by one, sizes and checksums verified.

    `root` is the one folder that holds every member (torch always writes one), or "" when there is none.
    `has_checksums` is False for files torch wrote with checksums switched off: every one is zero then.

    Raises:
        InputRefused: a corrupt or cut directory, encrypted, linked, duplicate, overlapping or absolute members, names
            that leave the archive, unknown compression, or more than `limits` allow.
    """

    def __init__(self, source: Source, limits: Limits) -> None:
        self._source, self._limits = source, limits
        directory = _find_directory(source)
        if directory.count > limits.max_entries:
            raise source.unsafe(f"it lists {directory.count:,} archive members, more than {limits.max_entries:,}")
        self.entries = _read_directory(source, directory)
        self._refuse_overlaps(directory.start)
        self._refuse_bombs()
        self.has_checksums = any(entry.crc for entry in self.entries.values())
        roots = {name.partition("/")[0] for name in self.entries}
        nested = all("/" in name for name in self.entries)
        self.root = f"{roots.pop()}/" if len(roots) == 1 and nested else ""

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def read(self, name: str, most: int) -> bytes:
        """All bytes of a small member.

        Raises:
            InputRefused: missing, larger than `most`, or its sizes or checksum do not hold.
        """
        entry = self.entry(name)
        if entry.n_bytes > most:
            raise self._source.unsafe(f"{short(name)} inside it has {entry.n_bytes:,} bytes, more than {most:,}")
        data = bytearray(entry.n_bytes)
        self.read_into(entry, memoryview(data))
        return bytes(data)

    def entry(self, name: str) -> Entry:
        """The member called `name`.

        Raises:
            InputRefused: there is none.
        """
        if name not in self.entries:
            raise self._source.corrupt(f"{short(name)} is missing inside it")
        return self.entries[name]

    def read_into(self, entry: Entry, view: memoryview) -> None:
        """Fill `view`, exactly `entry.n_bytes` long, and verify the member's checksum.

        Raises:
            InputRefused: the data is damaged, or shorter or longer than the directory says.
        """
        if entry.method == STORED:
            self._source.read_into(entry.start, view)
        else:
            self._inflate(entry, view)
        if self.has_checksums and _crc(view) != entry.crc:
            raise self._source.corrupt(f"{short(entry.name)} inside it fails its checksum")

    def _inflate(self, entry: Entry, view: memoryview) -> None:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        filled, at, end = 0, entry.start, entry.start + entry.n_stored
        try:
            while not inflater.eof and (at < end or inflater.unconsumed_tail):
                fresh = b"" if inflater.unconsumed_tail else self._source.read(at, min(_CHUNK, end - at))
                at += len(fresh)
                piece = inflater.decompress(inflater.unconsumed_tail + fresh, min(_CHUNK, len(view) - filled) + 1)
                if filled + len(piece) > len(view):
                    raise self._source.corrupt(f"{short(entry.name)} inside it is longer than the directory says")
                view[filled : filled + len(piece)] = piece
                filled += len(piece)
        except zlib.error as error:
            raise self._source.corrupt(f"{short(entry.name)} inside it cannot be decompressed") from error
        if filled != len(view) or not inflater.eof or inflater.unused_data or at != end:
            raise self._source.corrupt(f"{short(entry.name)} inside it is not as long as the directory says")

    def _refuse_overlaps(self, directory: int) -> None:
        """Overlapping members are how 42 KB become petabytes: https://www.bamsoftware.com/hacks/zipbomb/."""
        ordered = sorted(self.entries.values(), key=lambda entry: entry.header)
        ends = [entry.header for entry in ordered[1:]] + [directory]
        for entry, end in zip(ordered, ends, strict=True):
            if entry.start + entry.n_stored > end:
                raise self._source.unsafe(f"{short(entry.name)} inside it overlaps what follows")
        if ordered and ordered[0].header != 0:
            raise self._source.unsafe("other data precedes its archive")

    def _refuse_bombs(self) -> None:
        limits = self._limits
        deflated = [entry for entry in self.entries.values() if entry.method == DEFLATED]
        for entry in deflated:
            if entry.n_bytes > max(limits.free_inflation, limits.max_inflation * entry.n_stored):
                raise self._source.unsafe(
                    f"{short(entry.name)} would inflate {entry.n_stored:,} bytes to {entry.n_bytes:,} (a zip bomb)"
                )
        total = sum(entry.n_bytes for entry in deflated)
        if total > limits.max_inflated:
            raise self._source.unsafe(f"it would inflate to {total:,} bytes (a zip bomb)")


def _find_directory(source: Source) -> _Directory:
    """Locate the central directory through the end record, which must close the file."""
    length = struct.calcsize(_END_FORMAT)
    tail_start = max(0, source.size - length - _MAX16)
    tail = source.read(tail_start, source.size - tail_start)
    at = tail.rfind(_END)
    while at >= 0 and not _closes(tail, at):
        at = tail.rfind(_END, 0, at)
    if at < 0:
        raise source.corrupt("its archive has no end, so it was cut short")
    _, disk, first, here, count, size, start, _ = struct.unpack_from(_END_FORMAT, tail, at)
    end = tail_start + at
    record = source.read(max(0, end - 20), min(20, end))
    if record[:4] == _LOCATOR:
        return _find_directory64(source, end, (disk, first, here, count, size, start))
    if (disk, first) != (0, 0) or here != count or start + size != end:
        raise source.corrupt("the end of its archive contradicts itself")
    return _Directory(start, size, count)


def _closes(tail: bytes, at: int) -> bool:
    """Whether an end record at `at`, with the comment it announces, ends exactly where the file ends."""
    length = struct.calcsize(_END_FORMAT)
    return len(tail) - at >= length and len(tail) - at - length == int.from_bytes(tail[at + 20 : at + 22], "little")


def _find_directory64(source: Source, end: int, short: tuple[int, ...]) -> _Directory:
    """The zip64 end record; every field of the short record must agree with it or be all ones."""
    _, locator_disk, at, disks = struct.unpack(_LOCATOR_FORMAT, source.read(end - 20, 20))
    length = struct.calcsize(_END64_FORMAT)
    if locator_disk != 0 or disks > 1 or at + length != end - 20:
        raise source.corrupt("the zip64 end of its archive is not where it says")
    sign, own_size, _, _, *fields = struct.unpack(_END64_FORMAT, source.read(at, length))
    _, _, here, count, size, start = fields
    blank = (_MAX16, _MAX16, _MAX16, _MAX16, _MAX32, _MAX32)
    agrees = all(small in (big, ones) for small, big, ones in zip(short, fields, blank, strict=True))
    if sign != _END64 or own_size != length - 12 or fields[:2] != [0, 0] or here != count or not agrees:
        raise source.corrupt("the zip64 end of its archive contradicts itself")
    if start + size != at:
        raise source.corrupt("the directory of its archive is not where it says")
    return _Directory(start, size, count)


def _read_directory(source: Source, directory: _Directory) -> dict[str, Entry]:
    smallest = struct.calcsize(_CENTRAL_FORMAT)
    if directory.size < directory.count * smallest:
        raise source.corrupt("the directory of its archive is shorter than its entries")
    data = source.read(directory.start, directory.size)
    entries: dict[str, Entry] = {}
    at = 0
    for _ in range(directory.count):
        if at + smallest > len(data):
            raise source.corrupt("the directory of its archive is cut short")
        fields = struct.unpack_from(_CENTRAL_FORMAT, data, at)
        n_name, n_extra, n_comment = fields[10:13]
        end = at + smallest + n_name + n_extra + n_comment
        if fields[0] != _CENTRAL or end > len(data):
            raise source.corrupt("the directory of its archive is damaged")
        name = _name(source, data[at + smallest : at + smallest + n_name])
        extra = data[at + smallest + n_name : at + smallest + n_name + n_extra]
        at = end
        if name in entries:
            raise source.unsafe(f"two members of its archive are called {short(name)}")
        entries[name] = _entry(source, name, fields, extra)
    if at != len(data):
        raise source.corrupt("the directory of its archive has more entries than it says")
    return entries


def _entry(source: Source, name: str, fields: tuple[int, ...], extra: bytes) -> Entry:
    _, _, _, flags, method, _, _, crc, n_stored, n_bytes, _, _, _, disk, _, mode, header = fields
    if flags & _ENCRYPTED:
        raise source.unsafe(f"{short(name)} inside it is encrypted", "decrypt it first")
    if method not in (STORED, DEFLATED):
        raise source.unsafe(f"{short(name)} inside it is compressed in a way torch never uses")
    if stat.S_ISLNK(mode >> 16):
        raise source.unsafe(f"{short(name)} inside it is a symbolic link")
    n_bytes, n_stored, header = _widen(source, (n_bytes, n_stored, header), extra)
    if disk not in (0, _MAX16) or (method == STORED and n_stored != n_bytes):
        raise source.corrupt(f"the directory entry of {short(name)} contradicts itself")
    start = _data_start(source, name, (header, flags, method, crc, n_stored, n_bytes))
    return Entry(name, header, start, n_stored, n_bytes, method, crc)


def _widen(source: Source, values: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Replace the fields that are all ones by those of the zip64 extra field, which holds exactly these, in order."""
    missing = [index for index, value in enumerate(values) if value == _MAX32]
    if not missing:
        return values
    at, wide = 0, list(values)
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1 and length >= 8 * len(missing) and at + 4 + length <= len(extra):
            for index, value in zip(missing, struct.unpack_from(f"<{len(missing)}Q", extra, at + 4), strict=True):
                wide[index] = value
            return wide[0], wide[1], wide[2]
        at += 4 + length
    raise source.corrupt("a large member of its archive has no zip64 sizes")


def _data_start(source: Source, name: str, promised: tuple[int, int, int, int, int, int]) -> int:
    """Where the member's data starts, once its local header agrees with the directory."""
    header, flags, method, crc, n_stored, n_bytes = promised
    length = struct.calcsize(_LOCAL_FORMAT)
    fields = struct.unpack(_LOCAL_FORMAT, source.read(header, length))
    sign, _, local_flags, local_method, _, _, local_crc, local_stored, local_bytes, n_name, n_extra = fields
    known_later = bool(local_flags & _SIZES_FOLLOW)
    agree = all(
        local == value or (value > 0 and local == _MAX32) or (known_later and local == 0)
        for local, value in ((local_crc, crc), (local_stored, n_stored), (local_bytes, n_bytes))
    )
    local_name = source.read(header + length, n_name)
    if sign != _LOCAL or local_method != method or (local_flags ^ flags) & _ENCRYPTED or not agree:
        raise source.corrupt(f"the header of {short(name)} contradicts the directory of its archive")
    if local_name != name.encode():
        raise source.unsafe(f"a member has two names, {short(name)} and {short(local_name)}")
    return header + length + int(n_name) + int(n_extra)


def _name(source: Source, raw: bytes) -> str:
    """A member's name, which may not lead outside the archive on any system."""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise source.unsafe(f"a member of its archive has the undecodable name {short(raw)}") from error
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name or ":" in parts[0]:
        raise source.unsafe(f"a member of its archive is called {short(name)}, which leads outside it")
    return name


def _crc(view: memoryview) -> int:
    crc = 0
    for at in range(0, len(view), _CHUNK):
        crc = zlib.crc32(view[at : at + _CHUNK], crc)
    return crc
