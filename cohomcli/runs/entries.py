"""Entries on disk: the strict JSON of `results.json`, the diagrams beside it, and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.data.spec import TextSample
from cohomcli.errors import InputRefused
from cohomcli.models.spec import LanguageMetrics, ModelInfo
from cohomcli.names import safe_name
from cohomcli.results import SCHEMA, Claim, Entry
from cohomcli.runs.files import read_json, to_json
from cohomcli.runs.folder import RunFolder
from cohomcli.runs.precision import precision_document, read_precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cohomcli.topology.results import DimensionSummary, LayerTopology, TopologyResult

ENTRY_FILE = "entry.json"
DIAGRAMS_FILE = "diagrams.safetensors"
TEXTS_FILE = "texts.jsonl"
PRECISION_FILE = "precision.json"


@dataclass(frozen=True)
class StoredRun:
    """A complete run read back: its folder, `results.json` and entries."""

    folder: Path
    results: dict[str, Any]
    entries: tuple[Entry, ...]


def results_document(command: str, entries: Sequence[Entry], extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The document of `results.json`: one entry lies flat, several lie under `models`. No times, no run paths."""
    failed = any(entry.error for entry in entries)
    head = {"schema": SCHEMA, "command": command, "status": "failed" if failed else "ok"}
    single = len(entries) == 1 and not extra
    body = entry_document(entries[0]) if single else {"models": [entry_document(entry) for entry in entries]}
    return body | dict(extra or {}) | head


def entry_document(entry: Entry) -> dict[str, Any]:
    """One entry as plain JSON values; absent parts are left out, never invented."""
    document: dict[str, Any] = {
        "model": entry.model,
        "dataset": entry.dataset,
        "status": entry.status,
        "claims": [{key: value for key, value in asdict(claim).items() if value is not None} for claim in entry.claims],
        "notes": list(entry.notes),
    }
    if entry.error:
        document["error"] = entry.error
    if entry.info:
        document["model_info"] = asdict(entry.info)
    if entry.sample:
        plain = [field.name for field in fields(TextSample) if field.name != "texts"]
        document["sample"] = {name: getattr(entry.sample, name) for name in plain} | {
            "n_texts": len(entry.sample.texts),
            "n_tokens": entry.n_tokens,
            "n_truncated": entry.n_truncated,
            "pooling": entry.pooling,
        }
    if entry.metrics:
        document["metrics"] = asdict(entry.metrics)
    elif entry.metrics_reason:
        document["metrics"] = {"absent": entry.metrics_reason}
    if entry.topology:
        document["topology"] = _topology_document(entry.topology)
    if entry.precision:
        document["precision"] = precision_document(entry.precision)
    elif entry.precision_reason:
        document["precision"] = {"absent": entry.precision_reason}
    return document


def _topology_document(result: TopologyResult) -> dict[str, Any]:
    return {
        "layers": [_layer_document(layer) for layer in result.layers],
        "expansion": asdict(result.expansion),
        "notes": list(result.notes),
    }


def _layer_document(layer: LayerTopology) -> dict[str, Any]:
    skipped = {"diagrams", "summaries", "betti", "compat"}
    document = {field.name: getattr(layer, field.name) for field in fields(layer) if field.name not in skipped}
    for summary in layer.summaries:
        document[f"h{summary.dimension}"] = {key: value for key, value in asdict(summary).items() if key != "dimension"}
    if layer.compat is not None:
        document["compat"] = dict(layer.compat)
    return document


def slug(entry_model: str, dataset: str) -> str:
    """The folder name of an entry's artifacts."""
    return f"{safe_name(entry_model)}--{safe_name(dataset)}"


def save_entry(run: RunFolder, entry: Entry) -> None:
    """Write `artifacts/<slug>/`: the entry, every diagram (float64 safetensors), the plan and the analysed texts."""
    base = f"artifacts/{slug(entry.model, entry.dataset)}"
    if entry.sample:
        run.write(f"{base}/{TEXTS_FILE}", "".join(json.dumps({"text": t}) + "\n" for t in entry.sample.texts))
    if entry.precision:
        stored = {"kind": entry.precision.kind, "result": asdict(entry.precision)}
        run.write(f"{base}/{PRECISION_FILE}", to_json(stored))
    if entry.topology:
        from safetensors.numpy import save

        run.write(f"{base}/{DIAGRAMS_FILE}", save(_diagram_arrays(entry.topology)))
    run.write(f"{base}/{ENTRY_FILE}", to_json(entry_document(entry)))


def _diagram_arrays(result: TopologyResult) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for layer in result.layers:
        for diagram in layer.diagrams:
            for part in ("pairs", "essential", "censored"):
                arrays[f"{layer.name}/h{diagram.dimension}/{part}"] = getattr(diagram, part)
        arrays[f"{layer.name}/betti/grid"] = layer.betti.grid
        arrays[f"{layer.name}/betti/values"] = layer.betti.values
    return arrays


def load_entry(folder: Path) -> Entry:
    """Read back one entry's artifacts.

    Raises:
        InputRefused: a file is missing or damaged.
    """
    document = read_json(folder / ENTRY_FILE)
    try:
        sample, precision = document.get("sample"), document.get("precision", {})
        return Entry(
            model=document["model"],
            dataset=document["dataset"],
            info=ModelInfo(**document["model_info"]) if "model_info" in document else None,
            sample=_read_sample(folder, sample) if sample else None,
            pooling=sample["pooling"] if sample else "",
            n_tokens=sample["n_tokens"] if sample else 0,
            n_truncated=sample["n_truncated"] if sample else 0,
            metrics=_read_metrics(document.get("metrics")),
            metrics_reason=document.get("metrics", {}).get("absent", ""),
            topology=_read_topology(folder, document["topology"]) if "topology" in document else None,
            claims=tuple(Claim(**claim) for claim in document["claims"]),
            notes=tuple(document["notes"]),
            error=document.get("error", ""),
            precision=read_precision(read_json(folder / PRECISION_FILE)) if "kind" in precision else None,
            precision_reason=precision.get("absent", ""),
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputRefused(f"{str(folder)!r} is damaged or of another version", "run the analysis again") from error


def _read_sample(folder: Path, document: dict[str, Any]) -> TextSample:
    lines = (folder / TEXTS_FILE).read_text(encoding="utf-8").splitlines()
    names = {field.name for field in fields(TextSample)} - {"texts"}
    texts = tuple(json.loads(line)["text"] for line in lines)
    return TextSample(texts=texts, **{name: document[name] for name in names})


def _read_metrics(document: dict[str, Any] | None) -> LanguageMetrics | None:
    return LanguageMetrics(**document) if document and "perplexity" in document else None


def _read_topology(folder: Path, document: dict[str, Any]) -> TopologyResult:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from cohomcli.topology.results import Expansion, TopologyResult

    try:
        arrays = load((folder / DIAGRAMS_FILE).read_bytes())
    except SafetensorError as error:
        raise ValueError("diagrams are damaged") from error
    return TopologyResult(
        layers=tuple(_read_layer(layer, arrays) for layer in document["layers"]),
        expansion=Expansion(**document["expansion"]),
        notes=tuple(document["notes"]),
    )


def _read_layer(document: dict[str, Any], arrays: Mapping[str, NDArray[np.float64]]) -> LayerTopology:
    from cohomcli.topology.results import BettiCurve, Diagram, LayerTopology

    name = document["name"]
    summaries = _read_summaries(document)
    diagrams = tuple(
        Diagram(s.dimension, *(arrays[f"{name}/h{s.dimension}/{part}"] for part in ("pairs", "essential", "censored")))
        for s in summaries
    )
    betti = BettiCurve(arrays[f"{name}/betti/grid"], arrays[f"{name}/betti/values"].astype("int64"))
    plain = {field.name for field in fields(LayerTopology)} - {"diagrams", "summaries", "betti", "compat"}
    return LayerTopology(
        **{key: document[key] for key in plain},
        diagrams=diagrams,
        summaries=summaries,
        betti=betti,
        compat=document.get("compat"),
    )


def _read_summaries(document: dict[str, Any]) -> tuple[DimensionSummary, ...]:
    from cohomcli.topology.results import DimensionSummary

    found = [dimension for dimension in range(10) if f"h{dimension}" in document]
    return tuple(DimensionSummary(dimension=dimension, **document[f"h{dimension}"]) for dimension in found)


def load_run(folder: Path) -> StoredRun:
    """Read a published run folder.

    Raises:
        InputRefused: not a run folder, of another schema, or damaged.
    """
    if not (folder / "results.json").is_file():
        raise InputRefused(f"{str(folder)!r} is no run folder: it has no results.json")
    results = read_json(folder / "results.json")
    if results.get("schema") != SCHEMA:
        raise InputRefused(f"{str(folder)!r} has results of schema {results.get('schema')!r}, not {SCHEMA!r}")
    documents = results.get("models", [results])
    if not isinstance(documents, list) or not all(isinstance(d, dict) and "model" in d for d in documents):
        raise InputRefused(f"{str(folder)!r} is damaged: its results list no models")
    entries = (load_entry(folder / "artifacts" / slug(str(d["model"]), str(d.get("dataset", "")))) for d in documents)
    return StoredRun(folder, results, tuple(entries))
