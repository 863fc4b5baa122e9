"""Entries on disk: the strict JSON of `results.json`, the diagrams beside it, and the way back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.data.spec import TextSample
from cohomcli.errors import InputRefused
from cohomcli.models.spec import LanguageMetrics, ModelInfo
from cohomcli.names import safe_name
from cohomcli.results import SCHEMA, Claim, Entry
from cohomcli.runs.activations import FILE as ACTIVATIONS_FILE
from cohomcli.runs.activations import Wish, wanted
from cohomcli.runs.circuits import circuits_document, read_circuits
from cohomcli.runs.files import read_json, sha256_file, to_json, write_whole, writing
from cohomcli.runs.folder import RunFolder
from cohomcli.runs.generation import generation_document, read_generation
from cohomcli.runs.precision import precision_document, read_precision
from cohomcli.runs.pruning import pruning_document, read_pruning
from cohomcli.runs.representation import read_representation, representation_document
from cohomcli.runs.training import ablation_document, read_trained, training_document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cohomcli.topology.results import DimensionSummary, LayerTopology, TopologyResult

ENTRY_FILE = "entry.json"
DIAGRAMS_FILE = "diagrams.safetensors"
TEXTS_FILE = "texts.jsonl"
PRECISION_FILE = "precision.json"
CERTIFICATES = "certificates"


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
    if entry.activations_sha256:
        document["activations"] = {"sha256": entry.activations_sha256}
    if entry.metrics:
        document["metrics"] = asdict(entry.metrics)
    elif entry.metrics_reason:
        document["metrics"] = {"absent": entry.metrics_reason}
    if entry.topology:
        document["topology"] = _topology_document(entry.topology)
    if entry.representation:
        document["representation"] = representation_document(entry.representation)
    if entry.training:
        document["training"] = training_document(entry.training)
    if entry.ablation:
        document["training"] = ablation_document(entry.ablation)
    if entry.pruning:
        document["pruning"] = pruning_document(entry.pruning)
    if entry.circuits:
        document["circuits"] = circuits_document(entry.circuits)
    if entry.generation:
        document["generation"] = generation_document(entry.generation)
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
    skipped = {"diagrams", "summaries", "betti", "compat", "loops", "geometry", "evidence"}
    document = {field.name: getattr(layer, field.name) for field in fields(layer) if field.name not in skipped}
    for summary in layer.summaries:
        figures = {key: value for key, value in asdict(summary).items() if key != "dimension" and value is not None}
        document[f"h{summary.dimension}"] = figures
    if layer.compat is not None:
        document["compat"] = dict(layer.compat)
    if layer.geometry is not None:
        document["geometry"] = asdict(layer.geometry)
    if layer.evidence is not None:
        document["evidence"] = {key: value for key, value in asdict(layer.evidence).items() if key != "draws"}
    if layer.loops:
        document["loops"] = [asdict(loop) for loop in layer.loops]
    return document


def slug(entry_model: str, dataset: str) -> str:
    """The folder name of an entry's artifacts."""
    return f"{safe_name(entry_model)}--{safe_name(dataset)}"


def keep_activations(run: RunFolder, entry: Entry, wish: Wish) -> Entry:
    """Write the entry's activations if `wish` wants them kept, and hand it back without them, with the file's hash."""
    if entry.activations is None:
        return entry
    bare = replace(entry, activations=None)
    if not wanted(wish, entry.activations):
        if wish == "never":
            return bare
        note = "activations take over 256 MiB and were not kept: a later comparison sees diagrams only"
        return replace(bare, notes=(*bare.notes, note))
    from cohomcli.models.store import write_layers

    target = run.path(f"artifacts/{slug(entry.model, entry.dataset)}/{ACTIVATIONS_FILE}")
    with write_whole(target) as stream:
        write_layers(stream, entry.activations, {})
    return replace(bare, activations_sha256=sha256_file(target))


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


def with_proofs(run: RunFolder, entry: Entry, artifacts: Path) -> Entry:
    """`entry`, read from another run's `artifacts`, with its certificates copied, so that `run` proves its claims."""
    from cohomcli.precision.result import PrecisionResult

    if not (artifacts / CERTIFICATES).is_dir():
        return entry
    here = f"artifacts/{slug(entry.model, entry.dataset)}/{CERTIFICATES}"
    with writing(run.stage):
        shutil.copytree(artifacts / CERTIFICATES, run.path(here), dirs_exist_ok=True)

    def moved(path: str | None) -> str | None:
        return f"{here}/{Path(path).name}" if path else path

    claims = tuple(replace(claim, certificate=moved(claim.certificate)) for claim in entry.claims)
    precision = entry.precision
    if isinstance(precision, PrecisionResult):
        rows = tuple(replace(row, certificate=moved(row.certificate)) for row in precision.refutations)
        precision = replace(precision, refutations=rows)
    return replace(entry, claims=claims, precision=precision)


def _diagram_arrays(result: TopologyResult) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for layer in result.layers:
        for diagram in layer.diagrams:
            for part in ("pairs", "essential", "censored"):
                arrays[f"{layer.name}/h{diagram.dimension}/{part}"] = getattr(diagram, part)
        arrays[f"{layer.name}/betti/grid"] = layer.betti.grid
        arrays[f"{layer.name}/betti/values"] = layer.betti.values
        if layer.betti.low is not None and layer.betti.high is not None:
            arrays[f"{layer.name}/betti/low"] = layer.betti.low
            arrays[f"{layer.name}/betti/high"] = layer.betti.high
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
            representation=read_representation(document["representation"]) if "representation" in document else None,
            claims=tuple(Claim(**claim) for claim in document["claims"]),
            notes=tuple(document["notes"]),
            error=document.get("error", ""),
            precision=read_precision(read_json(folder / PRECISION_FILE)) if "kind" in precision else None,
            precision_reason=precision.get("absent", ""),
            **read_trained(document.get("training")),
            pruning=read_pruning(document["pruning"]) if "pruning" in document else None,
            circuits=read_circuits(document["circuits"]) if "circuits" in document else None,
            generation=read_generation(document["generation"]) if "generation" in document else None,
            activations_sha256=document.get("activations", {}).get("sha256", ""),
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
    from cohomcli.topology.figures import Geometry
    from cohomcli.topology.results import BettiCurve, Diagram, LayerEvidence, LayerTopology, Loop

    name = document["name"]
    summaries = _read_summaries(document)
    diagrams = tuple(
        Diagram(s.dimension, *(arrays[f"{name}/h{s.dimension}/{part}"] for part in ("pairs", "essential", "censored")))
        for s in summaries
    )
    limits = (arrays.get(f"{name}/betti/{side}") for side in ("low", "high"))
    betti = BettiCurve(arrays[f"{name}/betti/grid"], arrays[f"{name}/betti/values"].astype("int64"), *limits)
    apart = {"diagrams", "summaries", "betti", "compat", "loops", "geometry", "evidence"}
    plain = {field.name for field in fields(LayerTopology)} - apart
    return LayerTopology(
        **{key: document[key] for key in plain},
        diagrams=diagrams,
        summaries=summaries,
        betti=betti,
        compat=document.get("compat"),
        loops=tuple(Loop(**loop | {"points": tuple(loop["points"])}) for loop in document.get("loops", ())),
        geometry=Geometry(**document["geometry"]) if "geometry" in document else None,
        evidence=LayerEvidence(**document["evidence"]) if "evidence" in document else None,
    )


def _read_summaries(document: dict[str, Any]) -> tuple[DimensionSummary, ...]:
    from cohomcli.topology.results import DimensionSummary

    found = [dimension for dimension in range(10) if f"h{dimension}" in document]
    return tuple(DimensionSummary(dimension=k, **_with_pairs(document[f"h{k}"])) for k in found)


def _with_pairs(summary: dict[str, Any]) -> dict[str, Any]:
    """Confidence limits as tuples again; JSON has lists."""
    if "intervals" not in summary:
        return summary
    return summary | {"intervals": {name: tuple(limits) for name, limits in summary["intervals"].items()}}


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
