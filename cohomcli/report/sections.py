"""Puts entries together into a document: the per-layer tables, and one section for every entry."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from cohomcli.report import facts, words
from cohomcli.report.circuits.part import circuits_part
from cohomcli.report.document import (
    Column,
    ComparisonSection,
    Document,
    EntrySection,
    Fact,
    Gallery,
    Part,
    ReportContext,
    Table,
)
from cohomcli.report.evidence import limits_tables, p_columns
from cohomcli.report.explorer import explorer_of
from cohomcli.report.generation.part import generation_part
from cohomcli.report.layers import dimensions_of, summary_of
from cohomcli.report.loops import asked_tables
from cohomcli.report.names import DASH, UNPRINTABLE, clean, number, percent, ratio
from cohomcli.report.picture import Picture, in_groups
from cohomcli.report.precision.facts import precision_glossary, precision_method
from cohomcli.report.precision.part import precision_part
from cohomcli.report.pruning.part import pruning_part
from cohomcli.report.representation.pictures import representation_galleries
from cohomcli.report.representation.tables import representation_tables
from cohomcli.report.representation.words import representation_glossary, representation_limits, representation_seen
from cohomcli.report.training.ablation import ablation_part
from cohomcli.report.training.part import training_part
from cohomcli.results import Entry
from cohomcli.topology.results import DimensionSummary, LayerTopology, TopologyResult


def assemble(
    entries: Sequence[Entry],
    pictures: Sequence[Sequence[Picture]],
    comparison: ComparisonSection | None,
    context: ReportContext,
    files: Sequence[Fact],
) -> Document:
    """The document of `entries`, whose pictures are given in the same order."""
    pairs = zip(entries, pictures, strict=True)
    sections = [_section(entry, f"entry-{at}", shown) for at, (entry, shown) in enumerate(pairs, start=1)]
    return Document(
        title=clean(context.title),
        version=clean(context.version),
        about=_about(entries),
        command=shell_line(context.argv),
        entries=tuple(sections),
        comparison=comparison,
        glossary=(
            *precision_glossary(entry.precision for entry in entries),
            *facts.glossary(entries),
            *representation_glossary(entries),
        ),
        files=tuple(files),
    )


def _about(entries: Sequence[Entry]) -> str:
    """What the report is about, in one sentence."""
    subjects = []
    if any(entry.precision is not None for entry in entries):
        subjects.append("Number formats of operations and weights: what can go where, and why.")
    if any(entry.ablation is not None for entry in entries):
        subjects.append("An ablation: whether structural losses help, against a placebo and others, over seeds.")
    if any(entry.training is not None for entry in entries):
        subjects.append("Training: losses on held-out texts, and what was measured on the way.")
    if any(entry.pruning is not None for entry in entries):
        subjects.append("Pruning: what was removed, and the perplexity before and after.")
    if any(entry.circuits is not None for entry in entries):
        subjects.append("A circuit: the parts of a model that carry a behaviour, and how much of it they keep.")
    if any(entry.generation is not None for entry in entries):
        subjects.append("Generated grids, and how they were filled.")
    if any(entry.topology is not None for entry in entries) or not subjects:
        subjects.append("Homology of layer activations; every figure was computed on the texts named below.")
    return " ".join(subjects)


def shell_line(argv: Sequence[str]) -> str:
    """`argv` as one line for a shell; characters that cannot be printed show as the replacement character."""
    return "".join(c if c.isprintable() else UNPRINTABLE for c in shlex.join(argv))


def _section(entry: Entry, anchor: str, pictures: Sequence[Picture]) -> EntrySection:
    return EntrySection(
        anchor=anchor,
        model=clean(entry.model, 80),
        dataset=clean(entry.dataset, 60),
        error=clean(entry.error, 600),
        parts=tuple(_parts(entry, pictures)),
        method=(*facts.method(entry), *precision_method(entry.precision)),
        claims=tuple(facts.claims(entry)),
    )


def _parts(entry: Entry, pictures: Sequence[Picture]) -> list[Part]:
    """What was analysed of the entry, with the entry's own notes under the first."""
    parts = []
    if entry.precision is not None:
        parts.append(precision_part(entry.precision, entry.model, pictures))
    if entry.training is not None:
        parts.append(training_part(entry.training, pictures))
    if entry.ablation is not None:
        parts.append(ablation_part(entry.ablation, pictures))
    if entry.pruning is not None:
        parts.append(pruning_part(entry.pruning, pictures))
    if entry.circuits is not None:
        parts.append(circuits_part(entry.circuits, pictures))
    if entry.generation is not None:
        parts.append(generation_part(entry.generation, pictures))
    if not parts or entry.topology is not None or entry.metrics is not None:
        parts.append(_topology_part(entry, pictures))
    notes = (clean(note, 400) for note in entry.notes)
    parts[0] = replace(parts[0], notes=tuple(dict.fromkeys([*notes, *parts[0].notes])))
    return [part if at == 0 else replace(part, notes=_fresh(part, parts[0])) for at, part in enumerate(parts)]


def _fresh(part: Part, first: Part) -> tuple[str, ...]:
    return tuple(note for note in part.notes if note not in first.notes)


def _topology_part(entry: Entry, pictures: Sequence[Picture]) -> Part:
    shown = {
        "Layer profile": in_groups(pictures, "profile"),
        "Betti curves": in_groups(pictures, "betti"),
        "Persistence diagrams": in_groups(pictures, "diagrams"),
        "Barcodes": in_groups(pictures, "barcodes"),
    }
    galleries = [Gallery(title, group) for title, group in shown.items() if group]
    return Part(
        title="Shape of the representations" if entry.topology else "Language modelling",
        headline=tuple(facts.headline(entry)),
        seen=(*words.seen(entry), *representation_seen(entry)),
        overview=in_groups(pictures, "overview"),
        limits=(*words.limits(entry), *representation_limits(entry)),
        notes=tuple(clean(note, 400) for note in entry.topology.notes) if entry.topology else (),
        blocks=(
            *(layer_tables(entry.topology) if entry.topology else ()),
            *asked_tables(entry),
            *representation_tables(entry),
            *galleries,
            *representation_galleries(pictures),
        ),
        explorer=explorer_of(entry.topology.layers) if entry.topology else None,
    )


def layer_tables(topology: TopologyResult) -> list[Table]:
    """The figures of every layer: its homology, its cloud, and the other system's figures where they were asked for."""
    layers = topology.layers
    if not layers:
        return []
    tables = [_homology_table(layers), *limits_tables(layers), _cloud_table(layers)]
    has_compat = any(layer.compat for layer in layers)
    return [*tables, _compat_table(layers, topology.expansion.compat)] if has_compat else tables


def _homology_table(layers: Sequence[LayerTopology]) -> Table:
    columns = [Column("layer", "in forward order", numeric=False)]
    dimensions = dimensions_of(layers)
    for dimension in dimensions:
        columns += [
            Column(f"H{dimension} bars", "number of finite bars"),
            Column(f"H{dimension} total", "total persistence, raw"),
            Column(f"H{dimension} / scale", "total persistence divided by the layer's scale"),
            Column(f"H{dimension} longest", "longest finite lifetime divided by the layer's scale"),
            Column(f"H{dimension} entropy", "persistence entropy in nats"),
        ]
    tested, p_values = p_columns(layers)
    columns += tested
    rows = [
        (clean(layer.name, 60), *(cell for k in dimensions for cell in _homology_cells(summary_of(layer, k))), *cells)
        for layer, cells in zip(layers, p_values, strict=True)
    ]
    note = (
        "Bars: finite ones only; the class of H0 that never dies is in no figure. Total: raw total persistence. "
        "/ scale: the same divided by the layer's scale. Longest: the longest lifetime divided by the scale."
    )
    if tested:
        note += " p: of the longest bar against the null model, for the layer alone; corr.: corrected for all tests."
    return Table("Homology of every layer", tuple(columns), tuple(rows), note)


def _homology_cells(summary: DimensionSummary | None) -> tuple[str, ...]:
    if summary is None:
        return (DASH,) * 5
    return (
        f"{summary.count:,}",
        number(summary.total_persistence, zeros=True),
        number(summary.total_over_scale, zeros=True),
        number(summary.max_over_scale, 3, zeros=True),
        number(summary.entropy, 3, zeros=True),
    )


def _cloud_table(layers: Sequence[LayerTopology]) -> Table:
    columns = (
        Column("layer", "in forward order", numeric=False),
        Column("points"),
        Column("distinct", "points that differ from one another"),
        Column("width", "of the layer"),
        Column("analysed", "dimensions after PCA"),
        Column("variance kept", "by the analysed dimensions"),
        Column("mean norm", "of the raw activations"),
        Column("scale", "mean pairwise distance of the analysed cloud"),
    )
    rows = tuple(
        (
            clean(layer.name, 60),
            f"{layer.n_points:,}",
            f"{layer.n_distinct:,}",
            f"{layer.ambient_dim:,}",
            f"{layer.pca_dim:,}",
            percent(layer.explained_variance, zeros=True),
            number(layer.mean_norm, zeros=True),
            number(layer.scale, zeros=True),
        )
        for layer in layers
    )
    return Table("The cloud of every layer", columns, rows)


def _compat_table(layers: Sequence[LayerTopology], expansion: float | None) -> Table:
    """Figures by the definitions of another system, as they come."""
    keys = list(dict.fromkeys(key for layer in layers for key in layer.compat or {}))
    columns = (Column("layer", numeric=False), *(Column(clean(key, 40)) for key in keys))
    rows = tuple(
        (clean(layer.name, 60), *(number((layer.compat or {}).get(key), 6) for key in keys)) for layer in layers
    )
    note = (
        "These follow the definitions of ToDACoMM, kept for comparison with its results: the class of H0 that never "
        "dies counts as a bar of length 1, whatever the units."
    )
    if expansion is not None:
        note += f" The expansion ratio by its definition is {ratio(expansion)}."
    return Table("Figures by ToDACoMM's definitions", columns, rows, note)
