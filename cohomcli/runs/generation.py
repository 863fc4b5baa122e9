"""Generated grids as part of results.json, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohomcli.training.generated import GenerationResult


def generation_document(result: GenerationResult) -> dict[str, Any]:
    """The result without what differs from run to run, and counts for gates."""
    document = asdict(result)
    del document["seconds"]
    for grid in document["grids"]:
        grid["filled_at"] = [" ".join(map(str, row)) for row in grid["filled_at"]]
    document["n_grids"] = len(result.grids)
    document["confidence"] = sum(grid.confidence for grid in result.grids) / len(result.grids)
    return document


def read_generation(document: Mapping[str, Any]) -> GenerationResult:
    """The inverse; raises KeyError or TypeError on a document of another version."""
    from cohomcli.training.generated import GeneratedGrid, GenerationResult

    plain = {key: value for key, value in document.items() if key not in ("n_grids", "confidence")}
    plain["grids"] = tuple(
        GeneratedGrid(**one | {"rows": tuple(one["rows"]), "filled_at": tuple(map(_numbers, one["filled_at"]))})
        for one in document["grids"]
    )
    return GenerationResult(**plain)


def _numbers(row: str) -> tuple[int, ...]:
    return tuple(map(int, row.split()))
