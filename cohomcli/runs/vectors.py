"""Diagrams as vectors in a run folder: Betti curves, landscapes, silhouettes, entropy curves and persistence images."""

from __future__ import annotations

from dataclasses import replace

from cohomcli.results import Entry
from cohomcli.runs.entries import slug
from cohomcli.runs.folder import RunFolder

FILE = "vectors.safetensors"


def keep_vectors(run: RunFolder, entry: Entry) -> Entry:
    """Write the vectors of every layer's diagrams, float64, and hand the entry back with a note that says where."""
    if entry.topology is None:
        return entry
    from safetensors.numpy import save

    from cohomcli.topology.vectors import vectors_of

    path = f"artifacts/{slug(entry.model, entry.dataset)}/{FILE}"
    run.write(path, save(vectors_of(entry.topology.layers), {"unit": "each layer's mean pairwise distance"}))
    return replace(entry, notes=(*entry.notes, f"diagrams as vectors on common grids: {path}"))
