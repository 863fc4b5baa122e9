"""What kind of file is this? Decided by its bytes and its zip directory; a suffix proves nothing."""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cohomcli.errors import InputRefused
from cohomcli.models.files.archive import Archive
from cohomcli.models.files.limits import DEFAULT, Limits
from cohomcli.models.files.source import Source, open_source

FileKind = Literal[
    "torch-zip", "torchscript", "exported", "torch-legacy", "pickle", "safetensors", "gguf", "npy", "npz",
    "torch-tar", "onnx", "hdf5", "keras", "tflite", "gzip", "zip", "lfs-pointer", "html", "json", "text", "media",
    "empty", "unknown",
]  # fmt: skip
READABLE: frozenset[FileKind] = frozenset(
    {"torch-zip", "torchscript", "exported", "torch-legacy", "pickle", "safetensors", "npy", "npz"}
)
# What to say about each kind that is not read here: what it is, and what to do.
_ADVICE: dict[FileKind, tuple[str, str]] = {
    "gguf": ("is a GGUF file", "GGUF models are loaded whole; name it as the model"),
    "torch-tar": ("is a tar file of torch before 0.1.10", "load it with an old torch and save it again"),
    "onnx": ("is an ONNX model, which is not read", "give the PyTorch model it was exported from"),
    "hdf5": ("is an HDF5 file (Keras or TensorFlow), which is not read", "convert the weights to safetensors"),
    "keras": ("is a Keras archive, which is not read", "convert the weights to safetensors"),
    "tflite": ("is a TensorFlow Lite model, which is not read", "give the PyTorch model it was converted from"),
    "gzip": ("is gzip-compressed", "decompress it first"),
    "zip": ("is a zip archive but no model file", "unpack it and give the model file inside"),
    "lfs-pointer": ("is a Git LFS pointer, not the model itself", "fetch the file with `git lfs pull`"),
    "html": ("is a web page, not a model", "the download needs a login or another address"),
    "json": ("is JSON text, not a model", "give the weight file"),
    "text": ("is a text file, not a model", "give the weight file"),
    "media": ("is an image, a sound or a document, not a model", "give the weight file"),
    "empty": ("is empty", "download it again"),
    "unknown": (
        "is of no known kind",
        "known: torch files, TorchScript, torch.export, safetensors, GGUF, NumPy arrays",
    ),
}
_MEDIA = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"OggS", b"fLaC", b"ID3", b"%PDF-", b"II*\0", b"MM\0*")
_HEAD = 4096
_PROBE_OPCODES = 200
_ONNX_TEXT_FIELDS = frozenset({2, 3, 4, 6, 7, 8, 14, 20, 25})  # ModelProto's length-delimited fields


@dataclass(frozen=True)
class Sniffed:
    """A file's kind, and for one we cannot read here `why` and what to do instead (`hint`)."""

    kind: FileKind
    why: str = ""
    hint: str = ""

    @property
    def readable(self) -> bool:
        """Whether `read_model_file` reads it."""
        return self.kind in READABLE


def sniff(path: Path, limits: Limits = DEFAULT) -> Sniffed:
    """Identify a file.

    Raises:
        InputRefused: it cannot be opened, or is a damaged or unsafe zip archive.
    """
    with open_source(path) as source:
        return sniff_source(source, limits)


def sniff_source(source: Source, limits: Limits) -> Sniffed:
    """Identify the bytes of `source`.

    Raises:
        InputRefused: a damaged or unsafe zip archive.
    """
    kind = _kind(source, limits)
    return Sniffed(kind, *_ADVICE.get(kind, ("", "")))


def refuse(source: Source, found: Sniffed) -> InputRefused:
    """The error for a kind that is not read here."""
    return InputRefused(f"{source.label!r} {found.why}", found.hint)


def _kind(source: Source, limits: Limits) -> FileKind:
    head = source.read(0, min(_HEAD, source.size))
    if not head:
        return "empty"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _zip_kind(Archive(source, limits))
    for kind, matches in (
        ("gguf", head[:4] == b"GGUF"),
        ("hdf5", head[:8] == b"\x89HDF\r\n\x1a\n"),
        ("npy", head[:6] == b"\x93NUMPY"),
        ("gzip", head[:2] == b"\x1f\x8b"),
        ("tflite", head[4:8] == b"TFL3"),
        ("torch-tar", head[257:262] == b"ustar"),
        ("safetensors", _is_safetensors(source, head)),
        ("torch-legacy", _is_legacy(head)),
        ("pickle", head[0] == 0x80 and 2 <= head[1:2][0] <= 5 if len(head) > 1 else False),
        ("onnx", _is_onnx(head)),
        ("lfs-pointer", head.startswith(b"version https://git-lfs.github.com/spec/")),
        ("media", head.startswith(_MEDIA) and not _is_text_pickle(source, head)),
    ):
        if matches:
            return kind  # type: ignore[return-value]
    return _text_kind(source, head)


def _zip_kind(archive: Archive) -> FileKind:
    names, root = archive.entries, archive.root
    if f"{root}archive_format" in names or any(name.endswith("serialized_exported_program.json") for name in names):
        return "exported"
    if f"{root}constants.pkl" in names and f"{root}data.pkl" in names:
        return "torchscript"
    if f"{root}data.pkl" in names:
        return "torch-zip"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    return "keras" if "model.weights.h5" in names or "config.json" in names else "zip"


def _is_safetensors(source: Source, head: bytes) -> bool:
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= source.size - 8


def _is_legacy(head: bytes) -> bool:
    """The pickled magic number: LONG1 of ten bytes, behind a protocol mark and, from protocol 4, perhaps a frame."""
    magic = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
    return head[:1] == b"\x80" and magic in (head[2 : 2 + len(magic)], head[11 : 11 + len(magic)])


def _is_onnx(head: bytes) -> bool:
    """Protocol buffer fields of an ONNX ModelProto: `ir_version` first (field 1, a small number), then known fields."""
    if len(head) < 4 or head[0] != 0x08 or not 1 <= head[1] <= 20:
        return False
    tag = head[2]
    if tag >> 3 == 5 and tag & 7 == 0:
        return True  # model_version
    return tag & 7 == 2 and tag >> 3 in _ONNX_TEXT_FIELDS


def _text_kind(source: Source, head: bytes) -> FileKind:
    if _is_text_pickle(source, head):
        return "pickle"
    try:
        text = head.decode("utf-8", "strict" if source.size <= _HEAD else "ignore").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError:
        return "unknown"
    if any(not (character.isprintable() or character in "\t\r\n\f") for character in text):
        return "unknown"
    if text.lower().startswith(("<!doctype html", "<html", "<head", "<?xml", "<body")):
        return "html"
    return "json" if text.startswith(("{", "[")) else "text"


def _is_text_pickle(source: Source, head: bytes) -> bool:
    """Protocols 0 and 1 have no magic: the file must end with the stop code and begin with well-formed opcodes."""
    if source.read(source.size - 1, 1) not in (b".", b"\n") or head[:1] not in b"(]}clIFVSULKMJGN)":
        return False
    count = 0
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            count += 1
            if opcode.name == "STOP":
                return count > 1 and source.size <= _HEAD
            if count == _PROBE_OPCODES:
                return True
    except (ValueError, OverflowError):
        return count > 8 and source.size > _HEAD  # the last opcode may be cut by the end of the head
    return False
