"""report.md: what markdown-it renders from it is the text itself, whatever the names are."""

from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from sampleresults import HOSTILE_NAMES, entry, failed_entry, hostile_entry

from cohomcli.report import markdown
from cohomcli.report.build import ReportContext
from cohomcli.report.names import clean
from cohomcli.report.plots import pictures_of
from cohomcli.report.sections import assemble

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
CONTEXT = ReportContext("run", ("cohom", "run", "--model", HOSTILE_NAMES[1]), "0.1.0", "cohom run")
nasty = st.text(st.sampled_from("\\`*_[]()<>|~$&!#+-=.:/0123456789 abhtpw\u00e9"), min_size=1, max_size=40)


def plain(rendered: str) -> str:
    return html.unescape(rendered).replace("\u200b", "")


@given(nasty)
def test_escaped_text_renders_as_itself(text: str) -> None:
    line = clean(text)
    if line:
        assert plain(PARSER.render(markdown.escape(line))) == f"<p>{line}</p>\n"
        assert plain(PARSER.render(f"- {markdown.escape(line)}")) == f"<ul>\n<li>{line}</li>\n</ul>\n"
        assert plain(PARSER.render(f"## {markdown.escape(line)}")) == f"<h2>{line}</h2>\n"


@given(nasty, nasty)
def test_escaped_cells_stay_cells(first: str, second: str) -> None:
    cells = [clean(first) or "x", clean(second) or "x"]
    rendered = PARSER.render("| a | b |\n| :-- | :-- |\n" + "| " + " | ".join(map(markdown.escape, cells)) + " |")
    found = re.findall(r"<td[^>]*>(.*?)</td>", rendered)
    assert [plain(cell) for cell in found] == cells


def test_bare_addresses_are_not_addresses_any_more() -> None:
    for text in ("see http://evil.example", "www.evil.example", "HTTPS://evil.example"):
        escaped = markdown.escape(text)
        assert not re.search(r"(?i)(https?:|www\.)", escaped)
        assert plain(PARSER.render(escaped)) == f"<p>{text}</p>\n"


def test_names_within_words_stay_readable() -> None:
    assert markdown.escape("layer_12.attention has 4.5 and -3") == "layer_12.attention has 4.5 and -3"


@given(nasty)
def test_commands_cannot_leave_their_block(text: str) -> None:
    tokens = PARSER.parse(markdown.code_block(text))
    assert [(token.type, token.content) for token in tokens] == [("fence", f"{text}\n")]


def _report(*entries, plots: bool = True) -> str:
    pictures = [pictures_of(item, f"{k}-") for k, item in enumerate(entries)]
    return markdown.render(assemble(entries, pictures, None, CONTEXT, []), plots)


def test_hostile_report_has_only_our_own_markup() -> None:
    tokens = PARSER.parse(_report(hostile_entry(), failed_entry()))
    inline = [child for token in tokens for child in token.children or []]
    assert not [t for t in (*tokens, *inline) if t.type in ("html_block", "html_inline")]
    targets = [t.attrGet("src") or t.attrGet("href") for t in inline if t.type in ("image", "link_open")]
    assert targets
    assert all(re.fullmatch(r"(plots|tables)/[a-z0-9._-]+", target) for target in targets)
    assert [t.tag for t in tokens if t.type == "heading_open"].count("h1") == 1
    texts = [plain(t.content.replace("\\", "")) for t in tokens if t.type == "inline"]
    assert any("<script>alert('x')</script>" in text for text in texts)


def test_report_says_what_failed_first() -> None:
    text = _report(entry(n_layers=3), failed_entry())
    assert text.index("1 of 2 analyses failed") < text.index("## tiny-gpt on builtin")
    assert "has no config.json" in text
    assert "## broken" not in text


def test_report_without_plots_links_none() -> None:
    assert "plots/" in _report(entry(n_layers=3))
    assert "plots/" not in _report(entry(n_layers=3), plots=False)


def test_every_layer_is_a_row_with_its_numbers() -> None:
    item = entry(n_layers=8)
    rows = [line.split(" | ") for line in _report(item).splitlines() if line.startswith("| layer_")]
    assert item.topology is not None
    for layer in item.topology.layers[1:-1]:
        of_layer = [row for row in rows if row[0] == f"| {layer.name}"]
        assert len(of_layer) == 2
        assert float(of_layer[0][2].replace(",", "")) == float(f"{layer.summaries[0].total_persistence:.4g}")
        assert int(of_layer[0][6]) == layer.summaries[1].count
        assert float(of_layer[1][7].rstrip(" |").replace(",", "")) == float(f"{layer.scale:.4g}")
