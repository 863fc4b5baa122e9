"""Groups, keep rules and hardware tables, and the problem they make with the estimates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from graphsketch import Sketch

from cohomcli.errors import UsageError
from cohomcli.precision.assignment import solve
from cohomcli.precision.costs import bytes_of
from cohomcli.precision.formats import FORMATS
from cohomcli.precision.granularity import HARDWARE, Keep, block_of, groups, hardware, keep, parse_keep, pinned
from cohomcli.precision.problem import Wishes, build_problem, plan_of
from cohomcli.precision.spec import Admissibility, ComputationGraph, Sensitivity
from cohomcli.precision.traffic import plan_flow


def blocks() -> ComputationGraph:
    """Two blocks with an attention and an mlp each, an embedding tied to the head."""
    s = Sketch()
    ids = s.input(4)
    wte = s.weight(20, storage="wte", module="wte", name="wte.weight")
    x = s.op(8, wte, ids, module="wte", name="embedding")
    for k in range(2):
        for part in ("attn", "mlp"):
            module = f"h.{k}.{part}"
            x = s.op(8, x, s.weight(64, module=module, name=f"{module}.weight"), module=module)
    head = s.weight(20, storage="wte", module="lm_head", name="lm_head.weight")
    logits = s.op(20, x, head, module="lm_head", name="logits", target="aten.linear.default")
    s.op(1, logits, module="lm_head", dtype="int64", fixed="discrete")  # belongs to no group
    return s.graph(logits)


def test_groups_by_module_and_by_block() -> None:
    graph = blocks()
    assert groups(graph, "op") == ((1, 11),)
    assert groups(graph, "module") == ((1, 11), (1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12))
    assert groups(graph, "block") == ((1, 11), (1, 2), (3, 4, 5, 6), (7, 8, 9, 10), (11, 12))
    with pytest.raises(UsageError, match="did you mean block"):
        groups(graph, "blok")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("transformer.h.0.attn", "transformer.h.0"),
        ("encoder.layer.11", "encoder.layer.11"),
        ("layer1.0.conv1", "layer1.0"),
        ("0.1", "0"),
        ("features.12.conv.0", "features.12"),
        ("lm_head", "lm_head"),
        ("h10.x", "h10.x"),
        ("", ""),
    ],
)
def test_blocks(module: str, block: str) -> None:
    assert block_of(module) == block


def test_keep_rules() -> None:
    graph, formats = blocks(), ("fp32", "fp16")
    kept = keep(graph, formats, [parse_keep("lm_head=fp32"), parse_keep("h.*.mlp=fp16|fp32"), parse_keep("h.1=fp16")])
    assert [v for v in range(14) if kept[v].tolist() == [True, False]] == [11, 12]
    assert [v for v in range(14) if kept[v].tolist() == [False, True]] == [7, 8, 9, 10]
    assert keep(graph, formats, [Keep("wte.weight", ("fp32",))])[1].tolist() == [True, False]
    assert keep(graph, formats, []).all()
    assert parse_keep("a=b=fp16") == Keep("a=b", ("fp16",))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["lm_heat=fp32"], "nothing is called 'lm_heat'; did you mean lm_head"),
        (["lm_head=bf16"], "cannot keep bf16"),
        (["lm_head=fp33"], "unknown format 'fp33'"),
        (["lm_head"], "cannot read the keep rule 'lm_head'"),
        (["=fp32"], "cannot read the keep rule '=fp32'"),
        (["lm_head=fp32", "lm_*=fp16"], "leave lm_head.weight no format"),
    ],
)
def test_keep_rules_that_cannot_hold_are_refused(rules: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        keep(blocks(), ("fp32", "fp16"), [parse_keep(rule) for rule in rules])


def test_hardware_tables() -> None:
    graph, formats = blocks(), ("fp32", "bf16", "fp16", "e4m3")
    volta = hardware(graph, formats, "sm70")
    assert volta[12].tolist() == [True, False, True, False]
    assert volta[11].all()  # a weight may be stored in any format
    hopper = hardware(graph, formats, "sm90")
    assert hopper[12].all()  # linear
    assert hopper[2].tolist() == [True, True, True, False]
    mine = hardware(graph, formats, {"aten.linear.default": ("fp16",), "*": ("fp32",)})
    assert mine[12].tolist() == [False, False, True, False]
    assert mine[2].tolist() == [True, False, False, False]
    for table in HARDWARE.values():
        assert set().union(*table.values()) <= set(FORMATS)
    with pytest.raises(UsageError, match="unknown hardware 'sm9'"):
        hardware(graph, formats, "sm9")
    with pytest.raises(UsageError, match="has no op"):
        hardware(graph, formats, {"linear": ("fp16",)})
    with pytest.raises(UsageError, match="unknown format"):
        hardware(graph, formats, {"*": ("fp17",)})


def test_int8_is_for_weights_and_fixed_values_keep_their_format() -> None:
    s = Sketch()
    x = s.input(4, "float32")
    graph = s.graph(s.op(4, x, s.weight(4)))
    assert pinned(graph, ("fp32", "int8")).tolist() == [[True, False], [True, True], [True, False]]
    assert pinned(graph, ("fp16", "int8"))[0].all()


# --- the whole problem ------------------------------------------------------------------------------------------------


def _estimates(graph: ComputationGraph, formats: tuple[str, ...]) -> tuple[Sensitivity, Admissibility]:
    u = np.array([FORMATS[f].unit_roundoff for f in formats])
    scores = np.tile(u**2, (len(graph.vertices), 1))
    allowed = np.ones_like(scores, dtype=bool)
    for v in graph.vertices:
        if v.fixed:  # nothing is measured where nothing is chosen
            scores[v.index], allowed[v.index] = math.inf, False
    return Sensitivity(formats, scores, scores, scores, 16, "rel-l2"), Admissibility(formats, allowed, {})


@pytest.mark.parametrize("level", ["op", "module", "block"])
def test_a_solved_problem_is_a_plan_with_the_bytes_it_promised(level: Any) -> None:
    graph, formats = blocks(), ("fp32", "fp16", "int8")
    sensitivity, admissibility = _estimates(graph, formats)
    wishes = Wishes(level=level, keep=(parse_keep("h.1.mlp=fp32"),))
    problem = build_problem(graph, sensitivity, admissibility, 1e-3, wishes)
    solution = solve(problem)
    chosen = plan_of(graph, formats, solution)
    assert solution.objective == bytes_of(graph, chosen).total
    assert sum(sensitivity.scores[v, formats.index(f)] for v, f in enumerate(chosen.formats) if f) <= 1e-6
    assert chosen.formats[0] == ""
    assert chosen.formats[9] == chosen.formats[10] == "fp32"
    assert plan_flow(graph, chosen).stored[0] == ""
    assert set(chosen.formats[1:-1]) - {"int8"} <= {"fp32", "fp16"}
    exact = build_problem(graph, sensitivity, admissibility, 0.0, wishes)
    assert solve(exact).infeasible
    with pytest.raises(ValueError, match="no plan"):
        plan_of(graph, formats, solve(exact))


def test_dead_ends_are_named_with_their_reason() -> None:
    graph, formats = blocks(), ("fp32", "fp16")
    sensitivity, admissibility = _estimates(graph, formats)
    allowed = admissibility.allowed.copy()
    allowed[12] = [True, False]
    ranged = Admissibility(formats, allowed, {(12, "fp16"): "measured 70000 > 65504"})
    with pytest.raises(UsageError, match="no format is left for logits: measured 70000 > 65504"):
        build_problem(graph, sensitivity, ranged, 1.0, Wishes(keep=(parse_keep("logits=fp16"),)))
    wishes = Wishes(level="module", keep=(parse_keep("lm_head.weight=fp16"),))
    with pytest.raises(UsageError, match=r"no format suits all of lm_head\.weight, logits"):
        build_problem(graph, sensitivity, ranged, 1.0, wishes)
    with pytest.raises(ValueError, match="admissibility about"):
        build_problem(graph, sensitivity, Admissibility(("fp32",), allowed[:, :1], {}), 1.0)
    scores = sensitivity.scores.copy()
    scores[12, 1] = math.inf  # out of range, although the admissibility does not say so
    infinite = Sensitivity(formats, scores, scores, scores, 16, "rel-l2")
    assert build_problem(graph, infinite, admissibility, 1.0).allowed[12].tolist() == [True, False]
