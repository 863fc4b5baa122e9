"""Names and numbers: whatever comes in, out goes one safe line, a safe file name, a number one can read back."""

from __future__ import annotations

import math
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampleresults import HOSTILE_NAMES

from cohomcli.report.depth import Stop, depth_of, labelled, short_name
from cohomcli.report.names import clean, count, listing, number, percent, slug, tick, unique_slugs

anything = st.text(st.characters(codec=None), max_size=300)


@given(anything)
def test_clean_is_one_printable_line_of_bounded_length(text: str) -> None:
    line = clean(text, 80)
    assert len(line) <= 80
    assert len(line.splitlines()) <= 1
    assert not {unicodedata.category(c) for c in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    line.encode("utf-8")


def test_clean_keeps_ordinary_names_as_they_are() -> None:
    for name in ("layer_12.attention", "org/model-1.5B", "mod\u00e8le", "\u5c42"):
        assert clean(name) == name


@given(st.lists(anything, max_size=8))
def test_slugs_are_safe_on_every_file_system_and_different(names: list[str]) -> None:
    slugs = unique_slugs(names)
    assert len(set(slugs)) == len(names)
    for part in slugs:
        assert part.strip("-._") == part
        assert set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._")
        assert 0 < len(part) <= 60
        assert ".." not in part or "/" not in part


def test_slug_reads_like_the_name() -> None:
    assert slug("HuggingFaceTB/SmolLM2-135M") == "huggingfacetb-smollm2-135m"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("\u5c42") == "unnamed"


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(2, 8))
def test_numbers_can_be_read_back_to_the_digits_promised(value: float, digits: int) -> None:
    for text in (number(value, digits), number(value, digits, zeros=True)):
        assert text.replace(",", "") == "0" or float(text.replace(",", "")) == float(f"{value:.{digits - 1}e}")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (15690.4, "15,690"), (0.12345, "0.1235"), (1.5e-7, "1.5e-7"), (2e12, "2e12"), (50.0000001, "50"),
     (math.inf, "\u221e"), (math.nan, "not a number"), (None, "\u2013"), (-3.5, "-3.5"), (9999.96, "10,000")],
)  # fmt: skip
def test_numbers_as_written(value: float | None, text: str) -> None:
    assert number(value) == text


def test_percent_never_rounds_to_all_or_nothing() -> None:
    assert [percent(x) for x in (1.0, 0.99999, 0.5, 0.00001, 0.0, 0.312)] == [
        "100 %", "<100 %", "50 %", "<0.1 %", "0 %", "31.2 %",
    ]  # fmt: skip


def test_axis_numbers_are_short() -> None:
    assert [tick(x) for x in (0, 0.02, 5, 1000, 20_000, 1_500_000, 3e9)] == [
        "0",
        "0.02",
        "5",
        "1k",
        "20k",
        "1.5M",
        "3G",
    ]


def test_counting_and_listing() -> None:
    assert [count(n, "class", "classes") for n in (0, 1, 2000)] == ["no classes", "1 class", "2,000 classes"]
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(map(str, range(10)), most=3) == "0, 1 and 8 more"


@given(st.integers(1, 200), st.integers(2, 16))
def test_axis_labels_keep_their_distance_and_name_both_ends(n_blocks: int, room: int) -> None:
    stops = [Stop("emb", "embedding", None), *(Stop(str(i), "block", i) for i in range(n_blocks))]
    stops.append(Stop("norm", "norm", None))
    shown = labelled(stops, room)
    assert shown[0] == 0
    assert shown[-1] == len(stops) - 1
    assert len(shown) <= room + 1
    assert min(b - a for a, b in pairwise(shown)) >= min(len(stops) / room, len(stops) - 1, 1)


def test_depth_reads_stacks_and_sublayers(make_layers) -> None:
    names = ["embedding", "layer_0.attention", "layer_0.mlp", "layer_0", "layer_1.attention", "layer_1.mlp", "layer_1"]
    depth = depth_of(make_layers([*names, "final_norm"]))
    assert [stop.label for stop in depth.stops] == ["emb", "0", "1", "norm"]
    assert {track.site: track.positions for track in depth.tracks} == {
        "block": (0, 1, 2, 3), "attention": (1, 2), "mlp": (1, 2),
    }  # fmt: skip
    two = depth_of(make_layers(["encoder.embedding", "encoder.layer_0", "decoder.embedding", "decoder.layer_0"]))
    assert [stop.label for stop in two.stops] == ["enc", "0", "dec", "0"]
    assert [track.stack for track in two.streams] == ["encoder", "decoder"]


def test_hostile_names_are_places_of_their_own(make_layers) -> None:
    depth = depth_of(make_layers(HOSTILE_NAMES))
    assert len(depth.stops) == len(HOSTILE_NAMES)
    assert {stop.role for stop in depth.stops} == {"other"}


def test_panel_names_keep_the_block_number() -> None:
    assert short_name("encoder.layer_11.attention") == "enc.layer_11.attn"
    assert len(short_name("x" * 99)) == 18


@pytest.fixture(name="make_layers")
def _make_layers():
    from sampleresults import renamed

    return renamed
