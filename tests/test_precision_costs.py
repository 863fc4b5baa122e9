"""Bytes and cost tables against counts by hand and a simulated execution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from graphsketch import Sketch, plan, uniform
from hypothesis import given, settings
from hypothesis import strategies as st

from cohomcli.errors import UsageError
from cohomcli.precision.costs import bytes_of, parse_cost_table, problem_costs
from cohomcli.precision.formats import FORMATS, storage_bytes
from cohomcli.precision.granularity import (
    groups,
)
from cohomcli.precision.spec import ComputationGraph, Plan, Vertex
from cohomcli.precision.traffic import dtype_bytes

WIDE = ("fp32", "bf16", "fp16", "e4m3")


# --- by hand ----------------------------------------------------------------------------------------------------------


def diamond() -> ComputationGraph:
    """ids(10) -> embedding of a table(100) = a(20); b(20), c(20) read a; d(20) reads b and c."""
    s = Sketch()
    ids, table = s.input(10), s.weight(100)
    a = s.op(20, table, ids)
    return s.graph(s.op(20, s.op(20, a), s.op(20, a)))


def test_diamond_in_one_format() -> None:
    found = bytes_of(diamond(), uniform(diamond(), "fp32"))
    assert found.weights == 400
    assert found.casts == found.n_casts == 0
    # written: a, b, c, d; read: ids once, a twice, b and c once
    assert found.activations_traffic == 4 * 80 + 10 * 8 + 4 * 80
    assert found.activations_peak == 3 * 80  # a, b, c while c is computed, then b, c, d
    assert found.total == 400 + 720
    assert found.memory == 400 + 240


def test_diamond_with_two_readers_of_one_copy() -> None:
    graph = diamond()
    found = bytes_of(graph, plan(graph, "fp32", "fp32", "fp16", "fp16", "fp16"))
    assert found.n_casts == 1  # b and c share the fp16 copy of a
    assert found.casts == 20 * 4 + 20 * 2
    assert found.activations_traffic == (80 + 3 * 40) + 80 + 4 * 40
    assert found.activations_peak == 80 + 40 + 40 + 40  # a, its copy, b, c
    other = bytes_of(graph, plan(graph, "fp32", "fp32", "fp16", "bf16", "fp32"))
    assert other.n_casts == 4  # a to fp16 and to bf16, b and c back to fp32
    assert other.casts == 4 * 120


def test_residual_block_keeps_the_stream_alive() -> None:
    s = Sketch()
    x = s.op(10, s.weight(10))
    h = s.op(40, s.op(40, x))
    graph = s.graph(s.op(10, x, s.op(10, h)))
    assert bytes_of(graph, uniform(graph, "fp32")).activations_peak == (10 + 40 + 40) * 4
    assert bytes_of(graph, uniform(graph, "bf16")).activations_peak == (10 + 40 + 40) * 2


def test_outputs_stay_and_unused_results_go() -> None:
    s = Sketch()
    first = s.op(5, s.weight(1))
    s.op(100, first)  # nobody reads it
    graph = s.graph(first, s.op(7, first))
    assert bytes_of(graph, uniform(graph, "fp32")).activations_peak == 105 * 4
    kept = s.graph(first, 2, 3)
    assert bytes_of(kept, uniform(kept, "fp32")).activations_peak == 112 * 4
    late = s.input(50, "float32")  # the caller's from the start, wherever it is listed
    with_input = s.graph(s.op(7, late))
    assert bytes_of(with_input, uniform(with_input, "fp32")).activations_peak == (105 + 50) * 4


def test_tied_weights_count_once_by_storage_not_by_name() -> None:
    s = Sketch()
    a, b = s.weight((30, 2), storage="embedding", name="wte"), s.weight((2, 30), storage="embedding", name="lm_head")
    own, same_name = s.weight(5, name="bias"), s.weight(5, name="bias")
    graph = s.graph(s.op(1, a, b, own, same_name))
    assert bytes_of(graph, uniform(graph, "fp16")).weights == (60 + 5 + 5) * 2
    assert bytes_of(graph, plan(graph, "fp32", "fp16", "fp16", "fp16", "fp16")).weights == 60 * 4 + (60 + 5 + 5) * 2
    assert groups(graph) == ((0, 1),)


def test_int8_has_scales_and_needs_no_copy() -> None:
    s = Sketch()
    x = s.input(8, "float32")
    linear = s.op((2, 16), x, s.weight((16, 4)), target="aten.linear.default")
    graph = s.graph(s.op((2, 6), linear, s.weight((16, 6)), target="aten.addmm.default"))
    found = bytes_of(graph, plan(graph, "int8", "fp16", "int8", "fp16"))
    assert found.weights == (64 + 16 * 4) + (96 + 6 * 4)  # addmm reads (in, out): its channels are the second axis
    assert found.n_casts == 1  # the float32 input alone
    assert found.casts == 8 * 4 + 8 * 2


def test_fixed_vertices_keep_their_own_bytes() -> None:
    s = Sketch()
    ids = s.input(10)
    mask = s.op(100, ids, fixed="mask constant")
    positions = s.op(10, ids, dtype="int64", fixed="integer")
    scores = s.op(100, s.weight(50), positions)
    masked = s.op(100, scores, mask)
    graph = s.graph(s.op(3, masked, dtype="int64", fixed="discrete"))
    found = bytes_of(graph, uniform(graph, "fp16"))
    assert found.weights == 100
    assert found.n_casts == 1  # the float32 mask; the discrete op reads what is stored, integers need none
    assert found.casts == 100 * 4 + 100 * 2
    written = 100 * 4 + 10 * 8 + 100 * 2 + 100 * 2 + 3 * 8
    read = 10 * 8 + 10 * 8 + 10 * 8 + 100 * 2 + 100 * 2 + 100 * 2
    assert found.activations_traffic == written + read


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "int64", "bfloat16", "float8_e5m2", "float64", "complex128"]
)
def test_dtype_bytes_are_those_of_torch(dtype: str) -> None:
    assert dtype_bytes(dtype) == torch.empty(0, dtype=getattr(torch, dtype)).element_size()


def test_plans_that_do_not_fit_are_refused() -> None:
    graph = diamond()
    with pytest.raises(UsageError, match="formats for 6 vertices"):
        bytes_of(graph, Plan(("fp32",)))
    with pytest.raises(UsageError, match="unknown format ''"):
        bytes_of(graph, Plan(("",) * 6))


# --- random graphs: a simulated execution, and the objective ----------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> ComputationGraph:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    s = Sketch()
    s.input(int(random.integers(1, 9)), str(random.choice(["int64", "float32"])))
    for _ in range(draw(st.integers(1, 12))):
        size = int(random.integers(1, 50))
        if random.random() < 0.3:
            s.weight(size, storage=str(random.integers(0, 3)) if random.random() < 0.5 else f"s{len(s.vertices)}")
            continue
        count = int(random.integers(1, min(4, len(s.vertices)) + 1))
        operands = random.choice(len(s.vertices), size=count, replace=False).tolist()
        fixed = (
            {} if random.random() < 0.8 else {"fixed": "discrete", "dtype": str(random.choice(["int64", "float32"]))}
        )
        s.op(size, *operands, **fixed)
    n = len(s.vertices)
    return s.graph(*sorted({n - 1, int(random.integers(0, n))}))


@st.composite
def planned(draw: st.DrawFn) -> tuple[ComputationGraph, Plan]:
    """A graph and a plan in which tied weights agree."""
    graph = draw(graphs())
    formats = [draw(st.sampled_from(WIDE)) for _ in graph.vertices]
    for group in groups(graph):
        for v in group:
            formats[v] = formats[group[0]]
    return graph, Plan(tuple("" if v.fixed else formats[v.index] for v in graph.vertices))


def _simulate(graph: ComputationGraph, chosen: Plan) -> tuple[int, int, int]:
    """Peak, traffic and cast bytes of a run that allocates, reads, converts and frees buffer by buffer."""
    width = {"float32": 4, "int64": 8}
    own = {"float32": "fp32", "int64": None}
    formats = [own[v.dtype] if v.fixed else chosen.formats[v.index] for v in graph.vertices]

    def size(u: int, fmt: str | None) -> int:
        v = graph.vertices[u]
        return v.numel * (width[v.dtype] if fmt is None else FORMATS[fmt].n_bytes)

    def asks(consumer: Vertex, u: int) -> str | None:
        return formats[u] if consumer.fixed or formats[u] is None else formats[consumer.index]

    reads = Counter((u, asks(v, u)) for v in graph.vertices for u in v.operands)
    buffers: dict[tuple[int, str | None], int] = {}
    peak = traffic = casts = 0
    for v in graph.vertices:
        if v.kind == "input" and (v.index in graph.outputs or any(v.index in w.operands for w in graph.vertices)):
            buffers[v.index, formats[v.index]] = size(v.index, formats[v.index])
    peak = sum(buffers.values())
    for v in graph.vertices:
        if v.kind != "op":
            continue
        for u in v.operands:
            key = (u, asks(v, u))
            if key[1] != formats[u] and key not in buffers:
                casts += size(u, formats[u]) + size(*key)
                buffers[key] = size(*key)
            if graph.vertices[u].kind != "weight":
                traffic += size(*key)
        buffers[v.index, formats[v.index]] = size(v.index, formats[v.index])
        traffic += size(v.index, formats[v.index])
        peak = max(peak, sum(buffers.values()))
        for u in v.operands:
            reads[u, asks(v, u)] -= 1
            if not reads[u, asks(v, u)] and asks(v, u) != formats[u]:
                del buffers[u, asks(v, u)]
        for u, fmt in list(buffers):
            if fmt == formats[u] and u not in graph.outputs and not sum(reads[u, f] for f in (None, *WIDE)):
                del buffers[u, fmt]
    return peak, traffic, casts


@settings(max_examples=150)
@given(planned())
def test_bytes_equal_a_simulated_execution(case: tuple[ComputationGraph, Plan]) -> None:
    found = bytes_of(*case)
    peak, traffic, casts = _simulate(*case)
    assert (found.activations_peak, found.activations_traffic, found.casts) == (peak, traffic, casts)


@settings(max_examples=150)
@given(planned())
def test_the_objective_is_the_total(case: tuple[ComputationGraph, Plan]) -> None:
    graph, chosen = case
    costs = problem_costs(graph, WIDE)
    columns = [WIDE.index(f) if f else 0 for f in chosen.formats]
    total = sum(costs.cost[v, f] for v, f in enumerate(columns))
    copies = {(u, columns[v]): size for (u, v), size in zip(costs.edges.tolist(), costs.cast_cost, strict=True) if size}
    total += sum(size * costs.cast_table[columns[u], f] for (u, f), size in copies.items())
    assert total == bytes_of(graph, chosen).total


def test_the_objective_counts_int8_like_the_bytes() -> None:
    s = Sketch()
    x = s.input(8, "float32")
    graph = s.graph(s.op((2, 16), x, s.weight((16, 4)), target="aten.linear.default"))
    formats = ("fp32", "fp16", "int8")
    costs = problem_costs(graph, formats)
    for weight in range(3):
        for op in range(2):
            columns = [0, weight, op]
            casts = sum(
                size * costs.cast_table[columns[u], columns[v]]
                for (u, v), size in zip(costs.edges.tolist(), costs.cast_cost, strict=True)
            )
            total = sum(costs.cost[v, f] for v, f in enumerate(columns)) + casts
            assert total == bytes_of(graph, plan(graph, formats[weight], formats[op])).total
    assert np.array_equal(problem_costs(graph, formats, "weights").cost[1], [256, 128, storage_bytes("int8", 64, 16)])


# --- cost tables ------------------------------------------------------------------------------------------------------

TABLE = '{"fp32": {"*": 2, "weight": 0.5, "cast": 3}, "fp16": {"aten.linear.default": 0.5, "*": 1}}'


def test_a_cost_table_prices_elements() -> None:
    s = Sketch()
    x = s.input(8, "float32")
    linear = s.op(16, x, s.weight(64), target="aten.linear.default")
    graph = s.graph(s.op(16, linear, target="aten.relu.default"))
    costs = problem_costs(graph, ("fp32", "fp16"), parse_cost_table(TABLE))
    assert costs.cost.tolist() == [[0, 0], [32, 0], [88 * 2, 88 * 0.5], [32 * 2, 32]]
    assert costs.cast_table.tolist() == [[0, 0], [3, 0]]
    assert costs.cast_cost.tolist() == [8, 64, 16]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "maps formats"),
        ('{"fp16": 1}', "maps formats"),
        ('{"fp17": {"*": 1}}', "unknown format 'fp17'"),
        ('{"fp16": {"aten.liner.default": 1}}', "no op 'aten.liner.default'"),
        ('{"fp16": {"aten.linear.defualt": 1}}', "no op"),
        ('{"fp16": {"linear": 1}}', "no op 'linear'"),
        ('{"fp16": {"*": -1}}', "number >= 0"),
        ('{"fp16": {"*": NaN}}', "number >= 0"),
        ('{"fp16": {"*": Infinity}}', "number >= 0"),
        ('{"fp16": {"*": true}}', "number >= 0"),
        ('{"fp16": {"*": "1"}}', "number >= 0"),
    ],
)
def test_cost_tables_with_unknown_keys_or_values_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_cost_table(text)


def test_cost_tables_must_cover_the_model() -> None:
    graph = diamond()
    with pytest.raises(UsageError, match="no format 'bf16'"):
        problem_costs(graph, ("bf16",), {"fp32": {"*": 1.0}})
    with pytest.raises(UsageError, match=r"no cost for aten\.add\.Tensor in fp32"):
        problem_costs(graph, ("fp32",), {"fp32": {"aten.mul.Tensor": 1.0}})
    with pytest.raises(UsageError, match="unknown objective 'latency'"):
        problem_costs(graph, ("fp32",), "latency")  # type: ignore[arg-type]
    assert parse_cost_table('{"fp16": {"mylib.op.default": 1}}') == {"fp16": {"mylib.op.default": 1}}
