"""Reports with precision: files, CSV to the last bit, hostile names, topology beside it, several models."""

from __future__ import annotations

import csv
import html as entities
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from blankfigures import leave_figures_blank
from markdown_it import MarkdownIt
from precisionresults import FORMATS, hostile, infeasible, llama, precision_entry, small, weights_result
from sampleresults import HOSTILE_NAMES, entry, failed_entry
from test_report_build import CONTEXT, digests
from test_report_html import KNOWN, Page

import cohomcli
from cohomcli.precision.result import PrecisionResult
from cohomcli.report.build import build
from cohomcli.report.names import clean
from cohomcli.report.precision.digest import ways
from cohomcli.results import Entry
from cohomcli.runs.precision import precision_document
from cohomcli.topology.comparison import compare

PICTURES = {"precision.png", "formats.png", "contributors.png", "bytes.png", "pareto.png"}
TABLES = {"plan.csv", "obstructions.csv", "baselines.csv", "pareto.csv", "curvature.csv"}
PARSER = MarkdownIt("commonmark").enable("table")


@pytest.fixture(autouse=True, scope="module")
def _blank():
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_blank(patch)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    build([precision_entry()], None, out, CONTEXT)
    return out


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def written(entries: list[Entry], out: Path, **changes: object) -> tuple[str, Page]:
    comparison = compare(entries) if len(entries) > 1 else None
    build(entries, comparison, out, replace(CONTEXT, **changes))  # type: ignore[arg-type]
    return (out / "report.md").read_text("utf-8"), Page((out / "report.html").read_text("utf-8"))


def headings(page: Page) -> list[int]:
    return [int(name[1]) for name, _ in page.tags if re.fullmatch("h[1-6]", name)]


def test_files_of_a_precision_analysis(alone: Path) -> None:
    files = {"report.md", "report.html", *(f"plots/{p}" for p in PICTURES), *(f"tables/{t}" for t in TABLES)}
    assert set(digests(alone)) == files


def test_equal_results_give_equal_bytes(alone: Path, tmp_path: Path) -> None:
    build([precision_entry()], None, tmp_path, CONTEXT)
    assert digests(tmp_path) == digests(alone)


def test_the_plan_is_exact_in_its_table(alone: Path) -> None:
    rows = read(alone / "tables/plan.csv")
    plan = small().plan
    assert [(r["name"], r["module"], r["format"], r["reason"]) for r in rows] == [
        (p.op, p.module, p.format, p.reason) for p in plan
    ]
    assert [float(r["share"]) for r in rows] == [p.share for p in plan]
    assert [r["shape"] for r in rows] == ["x".join(map(str, p.shape)) for p in plan]
    assert {(r["model"], r["dataset"]) for r in rows} == {("tiny-llama", "")}


def test_the_other_tables_are_complete(alone: Path) -> None:
    made = small()
    assert len(read(alone / "tables/obstructions.csv")) == sum(len(s.ops) for s in made.obstructions)
    baselines = read(alone / "tables/baselines.csv")
    for row, way in zip(baselines, ways(made), strict=True):
        assert row["error"] == ("" if way.error is None else repr(way.error))
        assert way.bytes is not None
        assert int(row["bytes_total"]) == way.bytes.weights + way.bytes.activations + way.bytes.casts
    trade_offs = read(alone / "tables/pareto.csv")
    assert [row["objective"] for row in trade_offs] == [
        "" if p.objective is None else repr(p.objective) for p in made.pareto
    ]
    assert len(read(alone / "tables/curvature.csv")) == len(made.curvature)


def test_sections_come_in_reading_order(alone: Path) -> None:
    text = (alone / "report.md").read_text("utf-8")
    order = ["What is seen", "What it does not mean", "The graph by format", "What runs where, by module",
             "What runs where, by operation", "Where fp16 is not admissible, by place", "Obstruction set of fp16",
             "Where the error comes from", "Top error contributors", "Bytes of one forward pass",
             "Plan against baselines", "What a tolerance costs", "Cost of every tolerance", "Closed loop",
             "Label sheaf", "Curvature and conditioning", "How it was measured", "Claims"]  # fmt: skip
    found = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert found == order
    assert text.index("plots/precision.png") < text.index("### What it does not mean")
    assert "## Words" in text
    assert "Homology" not in text


def test_claims_are_rendered_with_status_and_certificate(alone: Path) -> None:
    text = (alone / "report.md").read_text("utf-8")
    assert "| measured | the plan's held-out error |  |" in text
    assert "| proved-in-model | S_fp16 names every obstructed operation | artifacts/certificate.json |" in text


def test_the_page_links_its_sections_and_is_well_formed(alone: Path) -> None:
    page = Page((alone / "report.html").read_text("utf-8"))
    assert page.open == []
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    anchors = {(a.get("href") or "")[1:] for a in page.all("a") if (a.get("href") or "").startswith("#")}
    assert len(anchors) > 10
    assert anchors <= ids
    assert all(b <= a + 1 for a, b in pairwise(headings(page)))
    assert "what can go where, and why" in " ".join(page.text)
    assert len(page.all("img")) == len(PICTURES)


def test_topology_and_precision_of_one_model_stand_in_two_parts(tmp_path: Path) -> None:
    both = replace(entry(n_layers=3), precision=small())
    text, page = written([both], tmp_path)
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == [
        "Precision", "Shape of the representations", "How it was measured", "Claims",
    ]  # fmt: skip
    assert "#### Label sheaf" in text
    assert "#### Homology of every layer" in text
    assert text.count("padding side: left") == 1
    assert headings(page).count(2) == 3
    assert max(headings(page)) == 4
    assert all(b <= a + 1 for a, b in pairwise(headings(page)))
    assert {"overview.png", "precision.png"} <= {path.name for path in (tmp_path / "plots").iterdir()}
    assert "tables/layers.csv" in text
    assert "tables/plan.csv" in text


def test_a_sample_without_topology_is_still_told(tmp_path: Path) -> None:
    texts = entry().sample
    text, _ = written([precision_entry(sample=texts)], tmp_path)
    assert "texts SHA-256" in text
    assert "Shape of the representations" not in text


@pytest.mark.parametrize("made", [infeasible(llama(2)), weights_result()], ids=["infeasible", "weights"])
def test_results_without_a_plan_make_a_report(made: PrecisionResult, tmp_path: Path) -> None:
    text, page = written([precision_entry(made=made)], tmp_path)
    assert page.open == []
    assert "plan.csv" not in text
    assert "### What is seen" in text
    assert re.search(r"withheld|not met", text)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    bad = precision_entry(HOSTILE_NAMES[3], hostile(), dataset=HOSTILE_NAMES[0], notes=HOSTILE_NAMES[:2])
    text, page = written([bad, precision_entry("weights", replace(weights_result(), why=HOSTILE_NAMES[0]))], tmp_path)
    assert page.open == []
    assert {name for name, _ in page.tags} <= KNOWN
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert clean(HOSTILE_NAMES[0], 60) in " ".join(page.text)
    tokens = PARSER.parse(text)
    inline = [child for token in tokens for child in token.children or []]
    assert not [t for t in (*tokens, *inline) if t.type in ("html_block", "html_inline")]
    targets = [t.attrGet("src") or t.attrGet("href") for t in inline if t.type in ("image", "link_open")]
    assert all(re.fullmatch(r"(plots|tables)/[a-z0-9._-]+", str(target)) for target in targets)
    assert any("<script>alert('x')</script>" in entities.unescape(t.content.replace("\\", "")) for t in tokens)
    starts = {cell[:1] for path in (tmp_path / "tables").iterdir() for row in read(path) for cell in row.values()}
    assert not starts & {"=", "@", "+"}


def test_several_models_are_compared(tmp_path: Path) -> None:
    missed = replace(small(), met=False, measured_error=0.02, reason="too few calibration inputs")
    entries = [precision_entry("a"), precision_entry("b", missed), precision_entry("c", weights_result())]
    text, page = written([*entries, failed_entry()], tmp_path)
    assert "2 precision analyses: 1 met the tolerance; not met: b." in text
    assert "Of c only the weights were analysed" in text
    row = next(line for line in text.splitlines() if line.startswith("| b | not met | 0.01 |"))
    assert "| 0.02 | 1.05× |" in row
    assert "Nothing to compare: no analysis has a topology" not in text
    assert "Models side by side" in " ".join(page.text)
    assert {path.name for path in (tmp_path / "plots").iterdir()} >= {"a-precision.png", "b-formats.png"}
    assert {r["model"] for r in read(tmp_path / "tables/plan.csv")} == {"a", "b"}


def test_both_comparisons_can_stand_together(tmp_path: Path) -> None:
    entries = [replace(entry(name, n_layers=3), precision=small()) for name in ("a", "b")]
    text, _ = written(entries, tmp_path, plots=False)
    assert text.index("2 precision analyses: 2 met the tolerance.") < text.index("2 analyses side by side: a and b.")
    assert text.count("\n### Precision\n") == 1 + len(entries)
    assert "### Figures" in text


def test_one_precision_analysis_among_topologies_is_not_compared(tmp_path: Path) -> None:
    pair = [replace(entry("a", n_layers=2), precision=small()), entry("b", n_layers=2)]
    text, _ = written(pair, tmp_path, plots=False)
    assert "2 analyses side by side" in text
    assert "precision analys" not in text.split("## a on builtin")[0]


def keys_of(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from keys_of(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from keys_of(inner)


@pytest.mark.parametrize("made", [small(), weights_result()], ids=["program", "weights"])
def test_the_docs_name_every_key_of_the_section(made: PrecisionResult) -> None:
    text = (Path(__file__).parents[1] / "docs/results.md").read_text("utf-8")
    section = text[text.index("### precision") : text.index("## Exit codes")]
    assert set(keys_of(precision_document(made))) - set(FORMATS) <= set(re.findall(r"`(\w+)(?:\[\])?`", section))


def test_the_guide_has_a_paragraph_for_every_section(alone: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs/precision.md").read_text("utf-8").lower()
    for title in re.findall(r"^### (.*)$", (alone / "report.md").read_text("utf-8"), re.MULTILINE):
        words = re.sub(r", by .*| of fp16", "", title.lower()).replace("fp16", "a format")
        assert any(words in line for line in guide.splitlines() if line.startswith("## ")), title


def test_reports_see_result_dataclasses_only() -> None:
    """DESIGN: what reports know of the engine is `precision.result`, and the names in `precision.spec`."""
    for path in (Path(cohomcli.__file__).parent / "report").rglob("*.py"):
        engine = re.findall(r"^\s*(?:from|import) cohomcli\.precision\.(\w+)", path.read_text("utf-8"), re.MULTILINE)
        assert set(engine) <= {"result", "spec"}, path
