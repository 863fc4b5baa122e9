"""A circuit as part of results.json, as the file `circuit.json` that pruning reads, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.errors import InputRefused
from cohomcli.models.spec import ModelInfo
from cohomcli.runs.files import read_json

if TYPE_CHECKING:
    from cohomcli.circuits.results import CircuitResult

CIRCUIT_SCHEMA = "cohom.circuit/1"
CIRCUIT_FILE = "artifacts/circuit.json"


@dataclass(frozen=True)
class CircuitFile:
    """What pruning needs of a circuit: names of heads, MLPs, neurons or edges, and the model it was found in."""

    components: tuple[str, ...]
    heads_per_group: int
    task: str
    weights_sha256: str


def circuits_document(result: CircuitResult) -> dict[str, Any]:
    """The result without what differs from run to run."""
    document = asdict(result)
    del document["seconds"]
    return document


def read_circuits(document: Mapping[str, Any]) -> CircuitResult:
    """The inverse; raises KeyError or TypeError on a document of another version."""
    from cohomcli.circuits.results import Agreement, CircuitOptions, CircuitResult, Component, CurvePoint

    agreement = document["agreement"]
    return CircuitResult(
        **{
            **document,
            "options": CircuitOptions(**document["options"]),
            "components": tuple(Component(**one) for one in document["components"]),
            "circuit": tuple(document["circuit"]),
            "curve": tuple(CurvePoint(**point) for point in document["curve"]),
            "agreement": None if agreement is None else Agreement(**agreement),
        }
    )


def circuit_file(result: CircuitResult, info: ModelInfo, pairs_sha256: str) -> dict[str, Any]:
    """The document of `circuit.json`."""
    effects = {one.name: one.effect for one in result.components if one.in_circuit}
    return {
        "schema": CIRCUIT_SCHEMA,
        "model": {
            "name": info.name,
            "architecture": info.architecture,
            "weights_sha256": info.weights_sha256,
            "n_layer": result.n_layer,
            "n_heads": result.n_heads,
            "n_groups": result.n_groups,
        },
        "task": {"name": result.task, "pairs_sha256": pairs_sha256},
        "options": asdict(result.options),
        "faithfulness": {"heldout": result.faithfulness, "low": result.low, "high": result.high},
        "components": [{"name": name, "effect": effects[name]} for name in result.circuit],
    }


def read_circuit_file(path: Path) -> CircuitFile:
    """The circuit in `path`: a `circuit.json`, or a run folder of `cohom circuits`.

    Raises:
        InputRefused: missing, damaged, or no circuit.
    """
    file = path / CIRCUIT_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputRefused(f"no circuit at {str(path)!r}", "give a circuit.json or a run folder of `cohom circuits`")
    document = read_json(file)
    if not isinstance(document, dict) or document.get("schema") != CIRCUIT_SCHEMA:
        raise InputRefused(f"{str(file)!r} is no circuit of schema {CIRCUIT_SCHEMA!r}")
    try:
        model = document["model"]
        return CircuitFile(
            components=tuple(str(one["name"]) for one in document["components"]),
            heads_per_group=int(model["n_heads"]) // int(model["n_groups"]),
            task=str(document["task"]["name"]),
            weights_sha256=str(model["weights_sha256"]),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputRefused(f"{str(file)!r} is damaged or of another version", "find the circuit again") from error
