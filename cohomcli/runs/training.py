"""A training result as part of results.json, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohomcli.training.results import TrainingResult


def training_document(result: TrainingResult) -> dict[str, Any]:
    """The result without what differs from run to run (seconds belong into the manifest)."""
    document = asdict(result)
    del document["seconds"]
    return document


def read_training(document: Mapping[str, Any]) -> TrainingResult:
    """The inverse; raises KeyError or TypeError on a document of another version."""
    from cohomcli.training.results import Record, Sample, TrainingResult

    history = tuple(Record(**record) for record in document["history"])
    samples = tuple(Sample(**sample) for sample in document["samples"])
    return TrainingResult(**{**document, "history": history, "samples": samples})
