"""The one way to a report: `build` writes report.md, report.html, plots/*.png and tables/*.csv into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cohomcli.progress import Progress, silent
from cohomcli.report import html, markdown
from cohomcli.report.circuits.pictures import circuit_pictures
from cohomcli.report.comparing import comparison_section
from cohomcli.report.document import Fact, ReportContext
from cohomcli.report.generation.pictures import generation_pictures
from cohomcli.report.names import clean, unique_slugs
from cohomcli.report.picture import Picture
from cohomcli.report.plots import pictures_of
from cohomcli.report.plots_compare import compare_picture
from cohomcli.report.plots_cross import cross_pictures
from cohomcli.report.plots_drift import drift_pictures
from cohomcli.report.precision.csvfiles import PRECISION_FILES, write_precision_tables
from cohomcli.report.precision.pictures import precision_pictures
from cohomcli.report.pruning.pictures import pruning_pictures
from cohomcli.report.representation.csvfiles import REPRESENTATION_FILES, write_representation_tables
from cohomcli.report.sections import assemble
from cohomcli.report.style import identity, save_png
from cohomcli.report.tables import BETTI, DIAGRAMS, LAYERS, LIMITS, LOOPS, write_tables
from cohomcli.report.training.ablation_pictures import ablation_pictures
from cohomcli.report.training.pictures import training_pictures
from cohomcli.results import Entry

if TYPE_CHECKING:
    from cohomcli.topology.comparison import Comparison

__all__ = ["ReportContext", "build"]

_WRITERS = (write_tables, write_precision_tables, write_representation_tables)
_TABLES = (LAYERS, BETTI, DIAGRAMS, LIMITS, LOOPS, *PRECISION_FILES, *REPRESENTATION_FILES)


def build(
    entries: Sequence[Entry],
    comparison: Comparison | None,
    out: Path,
    context: ReportContext,
    progress: Progress = silent,
) -> list[Path]:
    """Writes the report of `entries` into the folder `out`, which is made when missing; returns the paths written.

    Equal arguments give byte-identical files. File names come from model names made safe; with one entry they carry
    no model name at all.

    Raises:
        OSError: `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(entries)
    compared: list[Picture] = []
    if comparison and comparison.rows:
        compared = [compare_picture(comparison), *drift_pictures(comparison), *cross_pictures(comparison)]
    everything = [*compared, *(picture for group in pictures for picture in group)]
    steps = len(everything) if context.plots else 0
    written = _draw(everything, out, progress, steps + 2) if steps else []
    tables = [table for write in _WRITERS for table in write(entries, out)]
    progress("report", steps + 1, steps + 2)
    section = comparison_section(comparison, compared, entries)
    document = assemble(entries, pictures, section, context, _files(tables))
    texts = {"report.md": markdown.render(document, plots=steps > 0)}
    if context.html:
        texts["report.html"] = html.render(document, out / "plots" if steps else None)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    progress("report", steps + 2, steps + 2)
    return [*written, *tables, *(out / name for name in texts)]


def _pictures(entries: Sequence[Entry]) -> list[list[Picture]]:
    if len(entries) == 1:
        return [_pictures_of(entries[0], "")]
    slugs = unique_slugs(f"{entry.model}-{entry.dataset}" for entry in entries)
    return [_pictures_of(entry, f"{slug}-") for entry, slug in zip(entries, slugs, strict=True)]


def _pictures_of(entry: Entry, prefix: str) -> list[Picture]:
    model, dataset = clean(entry.model, 60), clean(entry.dataset, 40)
    subject = f"{model} on {dataset}" if dataset else model
    planned = precision_pictures(entry.precision, subject, prefix) if entry.precision else []
    trained = training_pictures(entry.training, subject, prefix) if entry.training else []
    trained += ablation_pictures(entry.ablation, subject, prefix) if entry.ablation else []
    pruned = pruning_pictures(entry.pruning, subject, prefix) if entry.pruning else []
    made = generation_pictures(entry.generation, subject, prefix) if entry.generation else []
    traced = circuit_pictures(entry.circuits, subject, prefix) if entry.circuits else []
    return [*planned, *trained, *pruned, *traced, *made, *pictures_of(entry, prefix)]


def _draw(pictures: Sequence[Picture], out: Path, progress: Progress, steps: int) -> list[Path]:
    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    paths = []
    with identity():
        for at, picture in enumerate(pictures):
            progress("report", at, steps)
            paths.append(folder / picture.file)
            save_png(picture.draw(), paths[-1])
    return paths


def _files(tables: Sequence[Path]) -> list[Fact]:
    names = {path.name for path in tables}
    return [fact for fact in _TABLES if Path(fact.label).name in names]
