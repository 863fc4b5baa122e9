"""Writes certificates: the model once, plainly, beside them; each is believed only after the checker accepted it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.precision.capture import Captured
from cohomcli.precision.prove.lowering import as_array, held_tensors, plain_graph
from cohomcli.verify.checker import verify
from cohomcli.verify.document import SCHEMA, Memory, canonical, digest
from cohomcli.verify.graph import PlainGraph, read_graph
from cohomcli.verify.kinds import KINDS
from cohomcli.verify.tensors import describe, file_hash, inline, tensor_hash, write_safetensors

INLINE_ENTRIES = 1024  # a tensor of at most so many entries stands in the certificate itself
INLINE_STEPS = 64  # and so does a graph of at most so many operations
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """A certificate on disk that `verify` has accepted: its file, its sentence, its status."""

    path: Path
    statement: str
    status: str


class Package:
    """A folder of certificates about one captured model; graph and weights are written with the first of them."""

    def __init__(self, folder: Path, name: str, captured: Captured | None, provenance: Mapping[str, Any]) -> None:
        self.folder = folder
        self.name = name
        self.provenance = dict(provenance)
        self.captured = captured
        self._model: dict[str, Any] | None = None
        self._graph: PlainGraph | None = None
        self._memory = Memory()

    @property
    def graph(self) -> PlainGraph:
        """The model as the checker will read it.

        Raises:
            Unsupported: it has an operation without rigorous mathematics.
        """
        if self._graph is None:
            assert self.captured is not None
            self._graph = read_graph(plain_graph(self.captured))
        return self._graph

    def write(
        self,
        kind: str,
        file: str,
        claim: Mapping[str, Any],
        tensors: Mapping[str, NDArray[Any]],
        precision: int = 64,
    ) -> Written | None:
        """Write `<folder>/<file>.json`, check it, and hand it back; None (and no file) when the checker refuses it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        found = KINDS.get(kind)
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": kind,
            "status": found.status,
            "claim": dict(claim),
            "model": self._model_part(),
            "tensors": self._tensor_part(file, tensors),
            "evaluation": {"precision": precision},
            "provenance": self.provenance,
        }
        document["statement"] = found.statement(document)
        document["digest"] = digest(document)
        path = self.folder / f"{file}.json"
        path.write_text(json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        verdict = verify(path, memory=self._memory)
        if verdict.state != "verified":
            logger.warning("no claim: the checker refused %s: %s", file, verdict.reason)
            path.unlink()
            return None
        return Written(path, document["statement"], document["status"])

    def _tensor_part(self, file: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        records: dict[str, Any] = {}
        beside: dict[str, NDArray[Any]] = {}
        for name, array in tensors.items():
            if array.size <= INLINE_ENTRIES:
                records[name] = inline(array)
            else:
                beside[name] = array
                records[name] = describe(array) | {"file": f"{file}.safetensors"}
        if beside:
            write_safetensors(self.folder / f"{file}.safetensors", beside)
        return records

    def _model_part(self) -> dict[str, Any]:
        """The model's entry, with its files written; an assignment problem has no program."""
        if self._model is None:
            empty: dict[str, Any] = {"graph": {"inline": {}}, "weights": {"inline": {}}}
            self._model = {"name": self.name} | (empty if self.captured is None else self._written_model(self.captured))
        return self._model

    def _written_model(self, captured: Captured) -> dict[str, Any]:
        document = plain_graph(captured)
        weights = {name: as_array(tensor) for name, tensor in held_tensors(captured).items()}
        small = sum(array.size for array in weights.values()) <= INLINE_ENTRIES
        if small and len(document["instructions"]) <= INLINE_STEPS:
            return {
                "graph": {"inline": document},
                "weights": {"inline": {name: inline(array) for name, array in weights.items()}},
            }
        text = canonical(document)
        graph = self.folder / f"graph-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        graph.write_text(text, encoding="utf-8")
        names = hashlib.sha256("".join(f"{k}={tensor_hash(v)};" for k, v in sorted(weights.items())).encode())
        stored = self.folder / f"weights-{names.hexdigest()[:12]}.safetensors"
        if not stored.exists():
            write_safetensors(stored, {name: np.asarray(array) for name, array in sorted(weights.items())})
        return {
            "graph": {"file": graph.name, "sha256": file_hash(graph)},
            "weights": {"file": stored.name, "sha256": file_hash(stored)},
        }
