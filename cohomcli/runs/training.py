"""A training result or an ablation as part of results.json, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohomcli.training.ablation_results import AblationResult
    from cohomcli.training.results import TrainingResult


def training_document(result: TrainingResult) -> dict[str, Any]:
    """The result without what differs from run to run (seconds belong into the manifest)."""
    document = asdict(result)
    del document["seconds"]
    return document


def ablation_document(result: AblationResult) -> dict[str, Any]:
    """The result without its time; the arms stand under `ablation`."""
    document = asdict(result)
    del document["seconds"]
    document["ablation"] = document.pop("arms")
    return document


def read_trained(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of an entry that its section `training` fills; raises KeyError or TypeError on another version."""
    if document is None:
        return {}
    return {"ablation": _ablation(document)} if "ablation" in document else {"training": _training(document)}


def _training(document: Mapping[str, Any]) -> TrainingResult:
    from cohomcli.training.results import Record, Sample, TrainingResult

    history = tuple(Record(**record) for record in document["history"])
    samples = tuple(Sample(**sample) for sample in document["samples"])
    return TrainingResult(**{**document, "history": history, "samples": samples})


def _ablation(document: Mapping[str, Any]) -> AblationResult:
    from cohomcli.training.ablation_results import AblationResult, ArmResult, PairedComparison, TunedWeight

    plain = {key: value for key, value in document.items() if key != "ablation"}
    parts = {
        "arms": tuple(ArmResult(**_tuples(arm)) for arm in document["ablation"]),
        "comparisons": tuple(PairedComparison(**_tuples(one)) for one in document["comparisons"]),
        "tuning": tuple(TunedWeight(**one) for one in document["tuning"]),
    }
    return AblationResult(**{**_tuples(plain), **parts})


def _tuples(document: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples again; JSON has no tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in document.items()}
