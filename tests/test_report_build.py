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
from cohomcli.topology.comparison import Comparison, compare
from cohomcli.topology.drift import DriftReport, LayerDrift, ModelDrift
from cohomcli.topology.maps import ModelMap

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


def drifted(entries: list[Entry]) -> Comparison:
    """The comparison of `entries` with a drift of 0.1 in every layer of the second, and no drift of the third."""
    rows = compare(entries)
    values = tuple(LayerDrift(item.name, 0.1 * (k + 1)) for k, item in enumerate(layers(3)))
    models = (ModelDrift(1, 0, values, 0.3, 0.2, "final_norm"), ModelDrift(2, 0, reason="not the same texts"))
    report = DriftReport((0,), True, "cka-debiased", "activations", models, (), None, None, None, "not the same texts")
    table = ((0.0, 0.2, 0.001), (0.2, 0.0, None), (0.001, None, 0.0))
    return replace(rows, drift=report, map=ModelMap("cka-debiased", 3, table, None, None, "some distances are missing"))


def test_drift_and_distances_are_told_shown_and_drawn(tmp_path: Path) -> None:
    entries = [entry(f"model-{k}", n_layers=3) for k in range(3)]
    build(entries, drifted(entries), tmp_path, CONTEXT)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "the largest is 0.3, in final_norm of model-1; over all layers it is 0.2 there on average" in text
    assert "No drift of model-2 from model-0: not the same texts." in text
    assert "| final_norm | 0.300 |" in text
    assert "| model-2 | 0.00100 | – | 0 |" in text
    for name in ("drift.png", "distances.png"):
        assert f"](plots/{name})" in text
        assert (tmp_path / "plots" / name).stat().st_size > 5000
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "nearest are model-2 and model-0 (0.001), farthest model-1 and model-0 (0.2)" in page


def test_the_drift_figure_shows_the_values(tmp_path: Path) -> None:
    from cohomcli.report.plots_drift import draw_distances, draw_drift
    from cohomcli.report.style import identity

    comparison = drifted([entry(f"model-{k}", n_layers=3) for k in range(3)])
    assert comparison.drift is not None
    assert comparison.map is not None
    names = [row.model for row in comparison.rows]
    placed = tuple((float(k), -float(k)) for k in range(3))
    with identity():
        lines = draw_drift(comparison.drift, names).axes[0].lines
        axes = draw_distances(replace(comparison.map, positions=placed, stress=0.25), names).axes
    assert [line.get_ydata().tolist() for line in lines] == [pytest.approx([0.1, 0.2, 0.3])]
    cells = [text.get_text() for text in axes[0].texts]
    assert cells == ["0", ".20", "<.01", ".20", "0", "n/a", "<.01", "n/a", "0"]
    assert [tuple(line.get_xydata()[0]) for line in axes[1].lines] == list(placed)
