"""report.html: self-contained, well formed, and deaf to what names try to do."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from blankfigures import leave_figures_blank
from sampleresults import HOSTILE_NAMES, entry, failed_entry, hostile_entry

from cohomcli.report.build import ReportContext, build
from cohomcli.report.names import clean

KNOWN = {
    *("html", "head", "meta", "title", "style", "script", "body", "header", "nav", "main", "section", "article"),
    *(
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "ul",
        "li",
        "a",
        "dl",
        "div",
        "dt",
        "dd",
        "strong",
        "pre",
        "code",
        "details",
        "summary",
    ),
    *("figure", "img", "figcaption", "table", "thead", "tbody", "tr", "th", "td"),
    *("label", "input", "svg", "circle", "rect", "path"),
}
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Start tags with attributes, text outside script and style, and whether every tag was closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.script: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.data: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            is_data = self.scripts[-1].get("type") == "application/json"
            (self.data if is_data else self.script).append(data)
        elif not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def context(**changes: object) -> ReportContext:
    argv = ("cohom", "run", "--model", HOSTILE_NAMES[0])
    return ReportContext(**{"command": "run", "argv": argv, "version": "0.1.0", "title": HOSTILE_NAMES[0], **changes})


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_blank(patch)
        build([hostile_entry(), failed_entry()], None, out, context())
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(hostile: str) -> Page:
    return Page(hostile)


def test_page_is_well_formed(page: Page) -> None:
    assert page.open == []
    assert [name for name, _ in page.tags[:2]] == ["html", "head"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_names_open_no_tag_and_no_attribute(page: Page) -> None:
    assert {name for name, _ in page.tags} <= KNOWN
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]


def test_nothing_outside_is_asked_for(page: Page) -> None:
    for _, attributes in page.tags:
        assert not attributes.keys() & {"srcset", "action", "data", "poster", "background", "formaction"}
        assert (attributes.get("src") or "data:").startswith("data:image/png;base64,") or "src" not in attributes
        assert re.fullmatch(r"#[a-z0-9-]+|tables/[a-z]+\.csv", attributes.get("href") or "#x")
    assert not page.all("link")


def test_styles_fetch_nothing(hostile: str) -> None:
    style = hostile[hostile.index("<style>") : hostile.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_one_script_and_it_is_the_one_the_policy_allows(page: Page) -> None:
    assert [attributes for attributes in page.scripts if attributes.get("type") != "application/json"] == [{}]
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256("".join(page.script).encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_hostile_names_are_shown_as_text(page: Page) -> None:
    text = " ".join(page.text)
    for name in HOSTILE_NAMES[:9]:
        assert clean(name, 60) in text
    assert "has no config.json; point --model at a folder" in text


def test_the_data_of_the_view_is_json_that_no_name_can_leave(page: Page) -> None:
    (text,) = page.data
    assert not set("<>&") & set(text)
    names = [layer["name"] for layer in json.loads(text)["layers"]]
    assert names == [clean(name, 60) for name in HOSTILE_NAMES]


def test_without_scripts_the_view_is_hidden_and_the_figures_are_there(page: Page) -> None:
    (view,) = [attributes for name, attributes in page.tags if attributes.get("class") == "explorer"]
    assert "hidden" in view
    assert len(page.all("img")) >= 5


def test_images_are_inlined_described_and_sized(page: Page) -> None:
    images = page.all("img")
    assert len(images) >= 5
    for image in images:
        data = base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,"))
        assert data.startswith(b"\x89PNG\r\n")
        assert len(image["alt"] or "") > 40
        assert 100 < int(image["width"] or 0) < 1400
    assert len({image["alt"] for image in images}) == len(images)


def test_headings_go_down_one_step_at_a_time(page: Page) -> None:
    levels = [int(name[1]) for name, _ in page.tags if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_headline_and_sections_are_there(page: Page) -> None:
    text = " ".join(" ".join(page.text).split())
    for heading in ("What is seen", "What it does not mean", "Homology of every layer", "Layer profile", "Betti curves",
                    "Persistence diagrams", "Barcodes", "How it was measured", "Reproduce"):  # fmt: skip
        assert heading in text
    assert "raw H0 expansion" in text
    assert "cohom run --model" in text


def test_page_without_plots(tmp_path: Path) -> None:
    build([entry(n_layers=3)], None, tmp_path, context(plots=False))
    without = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not without.all("img")
    assert not (tmp_path / "plots").exists()
    assert "Homology of every layer" in " ".join(without.text)
