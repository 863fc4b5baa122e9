"""The grid of the graph's picture: every tensor has one place, and what is alike in all blocks stands in one column."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from precisionresults import flat, llama, mlp, result, small

from cohomcli.precision.result import PlanRow
from cohomcli.report.precision.digest import place, short_op
from cohomcli.report.precision.grid import MOST_COLUMNS, WRAP, Panel, block_of, family, layout, skips

components = st.sampled_from(["model", "layers", "h", "0", "1", "2", "17", "attn", "", "x1", "conv2"])
paths = st.lists(components, max_size=5).map(".".join)
rows = st.builds(
    PlanRow,
    op=st.text("abc._0", max_size=6),
    target=st.sampled_from(["aten.add.Tensor", "aten.linear.default", "torchvision.nms.default", ""]),
    module=paths,
    kind=st.sampled_from(["op", "weight"]),
    shape=st.just((2,)),
    format=st.sampled_from(["fp32", "fp16"]),
    reason=st.just(""),
    share=st.just(0.0),
    largest=st.just(1.0),
    bytes=st.just(8),
)


@settings(max_examples=60)
@given(st.lists(rows, min_size=1, max_size=80))
def test_every_tensor_has_exactly_one_cell_and_no_two_share_one(plan: list[PlanRow]) -> None:
    panels = layout(plan)
    assert sorted(cell.index for panel in panels for cell in panel.cells) == list(range(len(plan)))
    for panel in panels:
        assert len({(cell.row, cell.column) for cell in panel.cells}) == len(panel.cells)
        assert all(0 <= c.row < len(panel.rows) and 0 <= c.column < len(panel.columns) for c in panel.cells)
        assert len(panel.columns) <= MOST_COLUMNS
        weights = [column.weight for column in panel.columns]
        assert weights == sorted(weights)


@settings(max_examples=60)
@given(st.lists(rows, min_size=1, max_size=80))
def test_named_columns_hold_one_kind_of_thing_and_rows_one_block(plan: list[PlanRow]) -> None:
    for panel in layout(plan):
        for cell in panel.cells:
            row, column = plan[cell.index], panel.columns[cell.column]
            if panel.title:
                assert block_of(row.module) == panel.rows[cell.row]
                assert family(panel.rows[cell.row]) == panel.title.removesuffix(", continued")
                assert row.module.removeprefix(panel.rows[cell.row]).removeprefix(".") == column.module
            if column.op:
                name = row.op.rpartition(".")[2] if row.kind == "weight" else short_op(row.target, row.kind)
                assert name == column.op


def panel_of(made: list[Panel], title: str) -> Panel:
    return next(panel for panel in made if panel.title == title)


def test_equal_blocks_line_up_and_stay_in_forward_order() -> None:
    made = small()
    panels = layout(made.plan)
    blocks = panel_of(panels, "model.layers.*")
    assert blocks.rows == tuple(f"model.layers.{k}" for k in range(3))
    assert Counter(cell.column for cell in blocks.cells) == dict.fromkeys(range(len(blocks.columns)), 3)
    assert [column.op for column in blocks.columns[:6]] == ["pow", "mean", "rsqrt", "mul", "mul", "linear"]
    assert blocks.n_ops == 24
    (outside,) = [panel for panel in panels if not panel.title]
    assert [made.plan[c.index].op for c in outside.cells][:2] == ["embedding", "pow_n"]


def test_an_operation_that_one_block_has_more_gets_a_column_of_its_own() -> None:
    plan = list(small().plan)
    at = next(n for n, row in enumerate(plan) if row.op == "silu_1")
    extra = replace(plan[at], op="clamp_1", target="aten.clamp.default")
    longer = panel_of(layout([*plan[: at + 1], extra, *plan[at + 1 :]]), "model.layers.*")
    names = [column.op for column in longer.columns]
    assert names[names.index("silu") + 1] == "clamp"
    assert sum(longer.columns[cell.column].op == "clamp" for cell in longer.cells) == 1
    assert len(longer.columns) == len(panel_of(layout(plan), "model.layers.*").columns) + 1


def test_the_residual_connections_are_found() -> None:
    made = small()
    blocks = panel_of(layout(made.plan), "model.layers.*")
    found = skips(blocks, made.edges)
    adds = [at for at, column in enumerate(blocks.columns) if column.op == "add"]
    assert (-1, adds[0]) in {(s.start, s.end) for s in found}
    assert (adds[0], adds[1]) in {(s.start, s.end) for s in found}
    assert all(0.5 <= s.share <= 1 and s.end - s.start >= 4 for s in found)


def test_networks_without_blocks_lie_in_rows() -> None:
    (chain,) = layout(result(mlp(3)).plan)
    assert [column.op for column in chain.columns] == ["linear", "relu"] * 3 + ["weight"] * 3
    (wrapped,) = layout(result(flat(500)).plan)
    assert len(wrapped.rows) == -(-500 // WRAP)
    assert len(wrapped.columns) == WRAP
    order = [cell.index for cell in sorted(wrapped.cells, key=lambda c: (c.row, c.column))]
    assert order == list(range(500))


def test_wide_blocks_continue_in_a_further_panel() -> None:
    plan = [
        replace(small().plan[0], kind="op", module=f"h.{k}", target=f"x.op{n}.default", op=f"op_{k}_{n}")
        for k in range(2)
        for n in range(MOST_COLUMNS + 5)
    ]
    first, second = layout(plan)
    assert (len(first.columns), len(second.columns)) == (MOST_COLUMNS, 5)
    assert second.title == "h.*, continued"


@pytest.mark.parametrize(
    ("module", "block", "general"),
    [
        ("encoder.layer.3.attention.self", "encoder.layer.3", "encoder.layer.*.attention.self"),
        ("lm_head", "", "lm_head"),
        ("0", "0", "*"),
        ("", "", "(top level)"),
        ("layer1.0.conv2", "layer1.0", "layer1.*.conv2"),
    ],
)
def test_blocks_and_places_are_read_from_module_paths(module: str, block: str, general: str) -> None:
    assert block_of(module) == block
    assert place(module) == general


def test_more_blocks_add_rows_and_no_columns() -> None:
    big = layout(result(llama(60)).plan)
    assert len(panel_of(big, "model.layers.*").columns) == len(panel_of(layout(small().plan), "model.layers.*").columns)
