"""The sentences, headline and tables of a precision report say what the result says, and never more."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from precisionresults import FORMATS, hostile, infeasible, llama, mlp, one_op, result, small, weights_result

from cohomcli.precision.result import ObstructionSet, PrecisionResult
from cohomcli.report.document import Table
from cohomcli.report.names import number, size
from cohomcli.report.precision import tables
from cohomcli.report.precision.digest import by_place, numel, obstructed_places, ways
from cohomcli.report.precision.facts import precision_glossary, precision_headline, precision_method
from cohomcli.report.precision.limits import limits
from cohomcli.report.precision.weights import weights_part
from cohomcli.report.precision.words import seen, verdict


def text(made: PrecisionResult) -> str:
    return " ".join([*seen(made, "net"), *limits(made)])


def headline(made: PrecisionResult) -> dict[str, str]:
    return {fact.label: fact.value for fact in precision_headline(made)}


def cells(table: Table, column: str) -> list[str]:
    at = [c.name for c in table.columns].index(column)
    return [row[at] for row in table.rows]


def every(made: PrecisionResult) -> list[Table]:
    return [
        tables.place_table(made), tables.op_table(made), *tables.obstruction_tables(made),
        tables.contributor_table(made), tables.ways_table(made), tables.round_table(made), tables.sheaf_table(made),
        tables.pareto_table(made), tables.curvature_table(made),
    ]  # fmt: skip


def test_met_is_said_with_the_measured_error_and_its_share_of_epsilon() -> None:
    said = verdict(small())
    assert said.startswith("Met: on 4 held-out inputs that played no part in the plan the relative L2 error")
    assert "is 0.0089, within epsilon = 0.01 (89 % of it)" in said
    assert headline(small())["tolerance"] == "met"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measured_error": 0.02, "reason": "the budget is too small"}, "0.02, above epsilon = 0.01. Why: the budget"),
        ({"measured_error": None, "reason": "they overflow"}, "gives outputs that are not finite. Why: they overflow."),
        ({"measured_error": 0.02, "n_overflows": 3}, "On them 3 tensors left the range of their formats."),
        ({"infeasible": True, "measured_error": 0.02}, "proved in the model: for the scores and admissible sets"),
    ],
)
def test_not_met_is_said_with_its_reason(changes: dict[str, object], words: str) -> None:
    made = replace(small(), met=False, **changes)  # type: ignore[arg-type]
    assert verdict(made).startswith("Not met")
    assert words in verdict(made)
    assert headline(made)["tolerance"] == "not met"


def test_without_a_plan_nothing_is_invented() -> None:
    made = infeasible(llama(2))
    assert headline(made)["held-out error"] == "–"
    assert "was not found" in verdict(made)
    said = text(made)
    assert "One forward pass under the plan" not in said
    assert "Predicted before" not in said
    assert "largest parts" not in said
    assert "not that no algorithm" in said


def test_bytes_are_compared_with_all_three_baselines() -> None:
    made = small()
    assert made.bytes_plan is not None
    facts = headline(made)
    for name, row in (
        ("fp32", made.bytes_fp32),
        ("uniform fp16", made.bytes_fp16),
        ("autocast fp16", made.bytes_autocast),
    ):
        share = 100 * made.bytes_plan.total / row.total
        assert float(facts[f"bytes against {name}"].rstrip(" %")) == pytest.approx(share, abs=0.06)
        assert size(row.total) in text(made)
    assert facts["bytes of one pass"] == size(made.bytes_plan.total)


def test_shares_of_operations_and_of_parameters_are_counted() -> None:
    made = small()
    ops = Counter(row.format for row in made.plan if row.kind == "op")
    weights: Counter[str] = Counter()
    for row in made.plan:
        weights[row.format] += numel(row) if row.kind == "weight" else 0
    facts = headline(made)
    for label, counts in (("operations", ops), ("weights", weights)):
        (fmt, most), *_ = counts.most_common()
        share, name = facts[label].rsplit(" ", 1)
        assert name == fmt
        assert float(share.strip("<% ")) == pytest.approx(100 * most / sum(counts.values()), abs=0.06)


def test_obstructions_are_named_by_place_and_add_up() -> None:
    made = small()
    (found,) = [s for s in made.obstructions if s.ops]
    assert found.format == "fp16"
    assert "fp16: inadmissible at 7 operations, so uniform fp16 is impossible relative to the admissible sets" in text(
        made
    )
    assert "run all the same it gives outputs that are not finite after 14 overflows" in text(made)
    assert "3 pow in model.layers.*.input_layernorm" in text(made)
    assert sum(len(p.ops) for p in obstructed_places(found, made.plan)) == len(found.ops)
    by_place_table, one_by_one = tables.obstruction_tables(made)
    assert cells(by_place_table, "obstructed") == ["3 of 3", "3 of 3", "1 of 1"]
    assert cells(one_by_one, "name") == [op.op for op in found.ops]
    assert cells(one_by_one, "reason") == [op.reason for op in found.ops]


def test_formats_without_obstruction_are_said_to_be_possible_with_what_they_err_by() -> None:
    said = text(small())
    assert "fp32 and bf16 are admissible everywhere" in said
    assert "fp32 errs by 3.2e-7 and bf16 errs by 0.016" in said
    free = replace(small(), obstructions=tuple(ObstructionSet(f, ()) for f in FORMATS))
    assert "impossible" not in text(free).replace("impossible in the model", "")
    assert not tables.obstruction_tables(free)


def test_long_obstruction_sets_are_capped_and_say_where_the_rest_is() -> None:
    made = result(llama(25))
    one_by_one = tables.obstruction_tables(made)[-1]
    assert len(one_by_one.rows) == tables.MOST_ROWS
    assert one_by_one.note.startswith("40 of 51 rows; all are in tables/obstructions.csv.")


def test_weight_only_formats_are_read_for_weights_alone() -> None:
    made = result(llama(2), (*FORMATS, "int8"))
    (found,) = [s for s in made.obstructions if s.format == "int8"]
    assert len(found.ops) > made.n_ops
    table = tables.obstruction_tables(made)[-1]
    assert "int8" in table.title
    assert set(cells(table, "operation")) == {"weight"}
    assert len(table.rows) == sum(op.kind == "weight" for op in found.ops)
    assert f"int8: for weights only; {len(table.rows)} weights are not admissible." in text(made)


def test_h1_is_never_offered_as_evidence() -> None:
    for made in (small(), result(mlp(2)), result(one_op()), infeasible(llama(2)), result(llama(2), epsilon=0.0)):
        said = text(made)
        assert "proves nothing" in said
        assert not re.search(r"(?i)h\^?1[^.]*(impossible|obstruct\w* to|prevents|shows that|so uniform)", said)
        assert not re.search(r"(?i)(?<!not )(guarantee|optimal)", said)
    sheaf = small().sheaf
    assert f"H^1 of dimension {sheaf.h1} proves nothing" in text(small())
    assert sheaf.h1 == 3 * sheaf.betti1 + 6  # three formats, seven obstructions in one component


def test_the_sheaf_table_adds_up() -> None:
    made = small()
    table = tables.sheaf_table(made)
    for column in ("h0", "h1", "islands"):
        *parts, total = (int(cell) for cell in cells(table, column))
        assert sum(parts) == total
    assert f"chi = h0 - h1 = {made.sheaf.h0 - made.sheaf.h1}." in table.note


def test_contributors_are_the_largest_shares_in_order() -> None:
    made = small()
    table = tables.contributor_table(made)
    shares = sorted((row.share for row in made.plan), reverse=True)[: tables.TOP]
    assert [float(c.strip("<% ")) for c in cells(table, "share of error")] == pytest.approx(
        [100 * s for s in shares], abs=0.06
    )
    assert f"make {100 * sum(shares):.1f} %" in table.note


def test_places_hold_the_whole_plan() -> None:
    made = small()
    groups = by_place(made.plan)
    assert sum(len(g.rows) for g in groups) == len(made.plan)
    assert sum(g.share for g in groups) == pytest.approx(1.0)
    table = tables.place_table(made)
    counted = [tuple(map(int, re.findall(r"\d+", cell))) for f in ("fp32", "fp16") for cell in cells(table, f)]
    assert sum(sum(pair) for pair in counted) == len(made.plan)
    assert sum(int(n.replace(",", "")) for n in cells(tables.op_table(made), "number")) == len(made.plan)


def test_negative_shares_are_shown_as_such() -> None:
    made = small()
    (place,) = (group for group in by_place(made.plan) if made.plan[0] in group.rows)
    rows = (replace(made.plan[0], share=made.plan[0].share - place.share - 0.018), *made.plan[1:])
    assert "-1.8 %" in cells(tables.place_table(replace(made, plan=rows)), "share of error")


def test_baselines_stand_beside_the_plan() -> None:
    made = small()
    table = tables.ways_table(made)
    assert cells(table, "way")[0] == "the plan"
    assert len(table.rows) == 1 + len(made.baselines)
    errors = dict(zip(cells(table, "way"), cells(table, "error"), strict=True))
    assert errors["uniform fp16"] == "not finite"
    assert errors["model.half()"] == "0.0022"
    absent = replace(made, baselines=(replace(made.baselines[2], ran=False, note="cannot be run here"),))
    assert cells(tables.ways_table(absent), "error")[1] == "not run"
    assert "uniform fp16 gives" not in text(absent)


def test_bytes_that_are_always_counted_have_rows_without_baselines() -> None:
    bare = replace(small(), baselines=())
    assert [way.key for way in ways(bare)] == ["plan", "uniform-fp32", "uniform-fp16", "autocast-cuda-fp16"]
    assert [way.ran for way in ways(bare)] == [True, True, False, False]
    assert cells(tables.ways_table(bare), "error") == ["0.0089", "3.2e-7", "not run", "not run"]
    lost = replace(bare, fp32_error=None)
    assert cells(tables.ways_table(lost), "error")[1] == "not finite"
    assert "fp32 everywhere: not finite" in precision_headline(lost)[1].note


def test_the_trade_off_says_where_there_is_no_plan_and_how_far_the_bound_is() -> None:
    table = tables.pareto_table(small())
    assert cells(table, "MiB")[0] == "–"
    assert set(cells(table, "gap")[1:]) == {"0.5 %"}
    other = replace(small(), objective="cost table")
    assert "MiB" not in [c.name for c in tables.pareto_table(other).columns]


def test_every_row_has_a_cell_per_column() -> None:
    for made in (small(), result(one_op()), hostile(), infeasible(llama(2))):
        for table in every(made):
            assert {len(row) for row in table.rows} <= {len(table.columns)}


def test_cost_tables_and_other_norms_have_their_units() -> None:
    made = replace(small(), objective="cost table", norm="kl", level="block")
    said = text(made)
    assert "KL divergence (nats) of the outputs" in said
    assert "the cost by the given table is least" in said
    assert "one per repeated block" in said
    assert f"{number(made.lower_bound)} is a lower bound" in said
    method = {fact.label: f"{fact.value} {fact.note}" for fact in precision_method(made)}
    assert "in nats" in method["error"]


def test_the_glossary_explains_the_formats_in_use() -> None:
    labels = [fact.label for fact in precision_glossary([small(), None])]
    assert labels[:3] == ["fp32", "bf16", "fp16"]
    assert {"obstruction set S_f", "h1", "island"} <= set(labels)
    assert precision_glossary([None]) == []
    assert "island" not in [fact.label for fact in precision_glossary([weights_result()])]


def test_hostile_names_come_out_on_one_line() -> None:
    made = hostile()
    everything = [*seen(made, made.inputs), *limits(made), *(c for t in every(made) for row in t.rows for c in row)]
    everything += [f"{fact.value} {fact.note}" for fact in (*precision_headline(made), *precision_method(made))]
    for sentence in everything:
        assert len(sentence.splitlines()) <= 1
        assert "\x1b" not in sentence
        sentence.encode("utf-8")


def test_weights_alone_claim_nothing_about_outputs() -> None:
    part = weights_part(weights_result(), "net", ())
    said = " ".join([*part.seen, *part.limits])
    assert part.headline[0].value == "withheld"
    assert "the file is a state dict of an unknown architecture" in said
    assert "nothing is claimed about any output" in said
    assert "fp16: 1 tensor cannot be stored in it: net.1.weight." in said
    by_format, by_tensor = (block for block in part.blocks if isinstance(block, Table))
    assert cells(by_format, "of stored") == ["100.0 %", "50.0 %", "54.2 %"]
    assert cells(by_tensor, "tensor")[0] == "net.1.weight"
    assert cells(by_tensor, "fp16")[0] == "–"


def test_many_weights_are_capped() -> None:
    table = weights_part(weights_result(100), "net", ()).blocks[1]
    assert isinstance(table, Table)
    assert len(table.rows) == tables.MOST_ROWS
    assert "40 of 100 rows; all are in tables/weights.csv." in table.note
