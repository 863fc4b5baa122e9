"""A certificate as a file: canonical JSON with a digest, its model, its tensors, and what a checker may be told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.verify.enclose import Progress, enclose, silent
from cohomcli.verify.graph import BadGraph, PlainGraph, read_graph
from cohomcli.verify.tensors import BadTensor, checked, describe, file_hash, from_inline, read_safetensors

SCHEMA = "cohom.certificate/1"
KEYS = {"schema", "kind", "statement", "status", "claim", "model", "tensors", "evaluation", "provenance", "digest"}
_MOST_BYTES = 1 << 30


class Rejected(Exception):
    """The certificate does not prove what it says; the message says why."""


class Unreadable(Exception):
    """There is no certificate to check: no file, no JSON, or files it names are missing."""


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of everything but the digest itself."""
    body = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(canonical(body).encode()).hexdigest()


def canonical(tree: Any) -> str:
    """JSON with sorted keys, without spaces, NaN or infinities."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_document(path: Path) -> dict[str, Any]:
    """The JSON of a certificate file.

    Raises:
        Unreadable: missing, too large, or no JSON object of our schema.
        Rejected: its keys are not those of a certificate.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise Unreadable(f"{path.name} is larger than a certificate may be")
        document = json.loads(path.read_bytes(), parse_constant=_refuse, object_pairs_hook=_no_twins)
    except OSError as error:
        raise Unreadable(f"cannot read {path.name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path.name} is no JSON: {error}") from error
    if not isinstance(document, dict) or "schema" not in document or "digest" not in document:
        raise Unreadable(f"{path.name} is no certificate")
    if document["schema"] != SCHEMA:
        raise Rejected(f"schema {document['schema']!r} is not {SCHEMA}")
    if set(document) != KEYS:
        raise Rejected(f"keys {sorted(set(document) ^ KEYS)} are missing or unknown")
    return document


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


class Memory:
    """The enclosed outputs of the last check, for certificates about the same model, input and precision by hash."""

    def __init__(self) -> None:
        self.key = ""
        self.values: dict[str, Any] = {}


@dataclass(frozen=True)
class Context:
    """A certificate being checked: its parts, with hashes verified when they are first read.

    `read` collects the names of the tensors that the check used.
    """

    document: dict[str, Any]
    folder: Path
    progress: Progress = silent
    memory: Memory = field(default_factory=Memory)
    read: set[str] = field(default_factory=set)
    _files: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)

    @property
    def claim(self) -> dict[str, Any]:
        """The claim's numbers and names."""
        return dict(self.document["claim"])

    @property
    def precision(self) -> int:
        """The working precision that the certificate asks for.

        Raises:
            Rejected: it is no sensible number of bits.
        """
        bits = self.document["evaluation"].get("precision")
        if type(bits) is not int or not 32 <= bits <= 1 << 14:
            raise Rejected(f"{bits!r} bits are no working precision")
        return bits

    @cached_property
    def graph(self) -> PlainGraph:
        """The program.

        Raises:
            Rejected: not a graph, or not the one with the stated hash.
        """
        part = self.document["model"]["graph"]
        if set(part) == {"inline"}:
            document = part["inline"]
        else:
            try:
                document = json.loads(self._file(part).read_bytes())
            except ValueError as error:
                raise Rejected(f"the graph file is no JSON: {error}") from error
        try:
            return read_graph(document)
        except BadGraph as error:
            raise Rejected(str(error)) from error

    @cached_property
    def weights(self) -> dict[str, NDArray[Any]]:
        """Held tensors by name.

        Raises:
            Rejected: malformed, or other hashes than stated.
        """
        part = self.document["model"]["weights"]
        try:
            if set(part) == {"inline"}:
                return {name: from_inline(record) for name, record in part["inline"].items()}
            return read_safetensors(self._file(part))
        except BadTensor as error:
            raise Rejected(str(error)) from error

    def _file(self, part: Mapping[str, Any]) -> Path:
        """A file beside the certificate, after its hash has been compared."""
        if set(part) != {"file", "sha256"}:
            raise Rejected("a file is named by `file` and `sha256`")
        path = self._beside(part["file"])
        if file_hash(path) != part["sha256"]:
            raise Rejected(f"{path.name} does not have the stated SHA-256")
        return path

    def _beside(self, name: Any) -> Path:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise Rejected(f"{name!r} is not the name of a file beside the certificate")
        path = self.folder / name
        if not path.is_file():
            raise Unreadable(f"{name} is missing beside the certificate")
        return path

    def tensor(self, name: str) -> NDArray[Any]:
        """A tensor of the certificate by name.

        Raises:
            Rejected: there is none, or it has not the stated hash.
        """
        record = self.document["tensors"].get(name)
        self.read.add(name)
        if not isinstance(record, dict):
            raise Rejected(f"the certificate has no tensor {name!r}")
        try:
            if "file" not in record:
                return from_inline(record)
            file = record["file"]
            if file not in self._files:
                self._files[file] = read_safetensors(self._beside(file))
            if name not in self._files[file]:
                raise Rejected(f"{file} has no tensor {name!r}")
            return checked(np.asarray(self._files[file][name]), record)
        except BadTensor as error:
            raise Rejected(f"tensor {name!r}: {error}") from error

    def tensors(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The tensors whose names begin with `prefix:`, without it."""
        names = [name for name in self.document["tensors"] if name.startswith(f"{prefix}:")]
        return {name.removeprefix(f"{prefix}:"): self.tensor(name) for name in names}

    def known(self, inputs: Mapping[str, Any]) -> dict[int, Any]:
        """Values by slot to evaluate from: held tensors and named arguments.

        Raises:
            Rejected: one is missing.
        """
        graph, weights = self.graph, self.weights
        missing = [n for n in graph.held.values() if n not in weights]
        missing += [n for n in graph.arguments.values() if n not in inputs]
        if missing:
            raise Rejected(f"no value for {missing[0]!r}")
        held = {slot: weights[name] for slot, name in graph.held.items()}
        return held | {slot: inputs[name] for slot, name in graph.arguments.items()}

    def outputs(self, inputs: Mapping[str, Any], names: list[str] | None = None) -> dict[str, Any]:
        """Enclosures of outputs by name (default: all) for named inputs, at the certificate's precision."""
        wanted = {n: s for n, s in self.graph.outputs.items() if names is None or n in names}
        known = self.known(inputs)  # which compares all hashes that the key is made of
        about = [self.document["model"][part] for part in ("graph", "weights")]
        described = {name: describe(np.asarray(array)) for name, array in inputs.items()}
        key = canonical([about, described, sorted(wanted), self.precision])
        if self.memory.key != key:
            found = enclose(self.graph, known, set(wanted.values()), self.precision, self.progress)
            self.memory.values = {name: found.values[slot] for name, slot in wanted.items()}
            self.memory.key = key
        return dict(self.memory.values)
