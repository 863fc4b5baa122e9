"""The whole report: which files it writes, under which names, byte-identical for equal input."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from blankfigures import leave_figures_blank
from precisionresults import mlp, result
from sampleresults import PERPLEXITY, entry, failed_entry, hostile_entry, info, layers, topology

from cohomcli.report import markdown
from cohomcli.report.build import ReportContext, build
from cohomcli.report.plots import pictures_of
from cohomcli.report.sections import assemble
from cohomcli.results import Entry
from cohomcli.topology.comparison import compare

CONTEXT = ReportContext("run", ("cohom", "run", "--samples", "40"), "0.1.0", "cohom run: tiny-gpt")
ONE = {"overview.png", "profile.png", "diagrams.png", "barcodes.png", "betti.png"}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_files_of_one_entry_have_plain_names_and_progress_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_figures_blank(monkeypatch)
    calls: list[tuple[str, int, int]] = []
    written = build([entry(n_layers=1)], None, tmp_path / "run", CONTEXT, lambda *call: calls.append(call))
    names = {path.relative_to(tmp_path / "run").as_posix() for path in written}
    tables = {"tables/layers.csv", "tables/betti.csv", "tables/diagrams.csv"}
    assert names == {"report.md", "report.html", *tables, *(f"plots/{name}" for name in ONE)}
    assert names == set(digests(tmp_path / "run"))
    done = [at for _, at, _ in calls]
    assert done == sorted(done)
    assert {total for _, _, total in calls} == {done[-1]}
    assert {step for step, _, _ in calls} == {"report"}


def test_equal_input_gives_equal_bytes_in_any_process(tmp_path: Path) -> None:
    """Another hash seed, time zone and backend, and a user's own matplotlib settings, change no byte."""
    item = entry(n_layers=1, precision=result(mlp(2)))
    build([item], None, tmp_path / "a", CONTEXT)
    (tmp_path / "arguments").write_bytes(pickle.dumps(([item], None, tmp_path / "b", CONTEXT)))
    code = (
        "import pickle, sys; from pathlib import Path; arguments = pickle.loads(Path(sys.argv[1]).read_bytes());"
        "import matplotlib; matplotlib.rcParams.update({'axes.facecolor': 'red', 'font.size': 20, 'savefig.dpi': 50});"
        "from cohomcli.report.build import build; build(*arguments);"
        "assert matplotlib.rcParams['font.size'] == 20;"
        "assert not {'matplotlib.pyplot', 'torch', 'scipy'} & sys.modules.keys()"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "MPLBACKEND": "svg"}
    command = [sys.executable, "-c", code, str(tmp_path / "arguments")]
    subprocess.run(command, env=environment, check=True, timeout=120)
    assert {"report.html", "plots/overview.png", "plots/formats.png"} <= digests(tmp_path / "a").keys()
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_names_cannot_leave_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_blank(monkeypatch)
    evil = [replace(hostile_entry(), model=name, topology=entry(n_layers=1).topology) for name in ("../../x", "..//X")]
    written = build(evil, compare(evil), tmp_path / "run", CONTEXT)
    assert all(path.resolve().is_relative_to(tmp_path / "run") for path in written)
    assert len(set(written)) == len(written) == 1 + 2 * len(ONE) + 5
    assert set(tmp_path.iterdir()) == {tmp_path / "run"}
    assert {path.parent.name for path in written} == {"run", "plots", "tables"}


def test_thirty_layers_are_paged() -> None:
    pictures = pictures_of(entry(topology=topology(layers(32, n_points=20, dim=4))), "")
    pages = [picture for picture in pictures if picture.group == "diagrams"]
    assert [page.file for page in pages] == ["diagrams-1.png", "diagrams-2.png", "diagrams-3.png"]
    assert pages[0].caption.startswith("12 of 32 layers, evenly spaced, with the first, the last")
    assert pages[1].caption.startswith("12 of 32 layers, in order")
    text = markdown.render(assemble([entry()], [pictures], None, CONTEXT, []), plots=True)
    assert "](plots/diagrams-3.png)" in text


def test_failures_and_missing_topology_still_make_a_report(tmp_path: Path) -> None:
    bare = replace(entry(), topology=None)
    written = build([failed_entry(), bare], None, tmp_path, CONTEXT)
    assert {path.name for path in written} == {"report.md", "report.html"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "1 of 2 analyses failed" in text
    assert "Perplexity on these texts" in text


def test_markdown_alone(tmp_path: Path) -> None:
    build([entry(n_layers=2)], None, tmp_path, replace(CONTEXT, html=False, plots=False))
    assert set(digests(tmp_path)) == {"report.md", "tables/layers.csv", "tables/betti.csv", "tables/diagrams.csv"}


def several() -> list[Entry]:
    """Five models with rising perplexity, one of them on a second data set, one that failed."""
    made = []
    for k in range(5):
        name = f"model-{k}"
        metrics = replace(PERPLEXITY, loss=3.0 + 0.1 * k, perplexity=20.0 + 3 * k)
        made.append(entry(name, n_layers=3 + k, metrics=metrics, info=replace(info(name), weights_sha256=f"{k}" * 64)))
    return [*made, replace(made[0], dataset="wikitext2"), failed_entry()]


def test_comparison_of_several_models(tmp_path: Path) -> None:
    entries = several()
    comparison = compare(entries)
    build(entries, comparison, tmp_path, replace(CONTEXT, plots=False))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "6 analyses side by side" in text
    for row in comparison.rows:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row.model} on {row.dataset} |"))
        assert row.expansion_raw is not None
        assert f"{row.expansion_raw:.3g}".rstrip(".") in line
    assert "model-0 on two data sets" in text
    assert "broken on builtin is left out" in text
    least = min(c.p_holm for group in comparison.groups for c in group.correlations if c.p_holm is not None)
    assert f"smallest corrected p-value is {least:.2g}" in text
    assert "Models side by side" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_comparison_figure_shows_every_model(tmp_path: Path) -> None:
    from cohomcli.report.plots_compare import draw_compare
    from cohomcli.report.style import identity

    comparison = compare(several())
    with identity():
        figure = draw_compare(comparison)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}
    assert len(panels) == 6
    for row, line in enumerate(panels["H₀ total persistence / scale"].lines[: len(comparison.rows)]):
        profile = next(p for p in comparison.profiles if p.row == row and p.figure == "h0_over_scale")
        assert line.get_xydata().tolist() == [list(point) for point in zip(profile.depth, profile.values, strict=True)]
    dots = [float(line.get_xdata()[0]) for line in panels["Perplexity"].lines if line.get_marker() != "None"]
    assert dots == [row.perplexity for row in comparison.rows]


def test_perplexities_that_do_not_compare_are_not_ranked(tmp_path: Path) -> None:
    first, second, *_ = several()
    assert second.info is not None
    other = replace(second, info=replace(second.info, vocab_size=7))
    build([first, other], compare([first, other]), tmp_path, replace(CONTEXT, plots=False, html=False))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| raw H0 expansion | model-" in text
    assert "| perplexity | model-" not in text
    assert "No correlation with loss is given" in text


def test_comparison_of_nothing(tmp_path: Path) -> None:
    failed = [failed_entry(), failed_entry()]
    build(failed, compare(failed), tmp_path, CONTEXT)
    assert "Nothing to compare: no analysis has a topology." in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not (tmp_path / "plots").exists()
