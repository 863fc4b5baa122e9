"""Bytes, autocast and cost tables against counts by hand, a simulated execution and what PyTorch really does."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cohomcli.errors import UsageError
from cohomcli.precision.assignment import solve
from cohomcli.precision.autocast import OP_LISTS, Device, autocast_plan, widest
from cohomcli.precision.costs import autocast_bytes, bytes_of, parse_cost_table, problem_costs
from cohomcli.precision.formats import FORMATS, storage_bytes
from cohomcli.precision.granularity import (
    HARDWARE,
    Keep,
    block_of,
    groups,
    hardware,
    keep,
    parse_keep,
    pinned,
)
from cohomcli.precision.problem import Wishes, build_problem, plan_of
from cohomcli.precision.spec import Admissibility, ComputationGraph, Plan, Sensitivity, Vertex
from cohomcli.precision.traffic import dtype_bytes, plan_flow

WIDE = ("fp32", "bf16", "fp16", "e4m3")


class Sketch:
    """Builds graphs by hand: every method returns the index of the vertex it adds."""

    def __init__(self) -> None:
        self.vertices: list[Vertex] = []

    def _add(self, kind: Any, numel: int | tuple[int, ...], **fields: Any) -> int:
        shape = (numel,) if isinstance(numel, int) else numel
        index = len(self.vertices)
        name = fields.pop("name", f"v{index}")
        defaults: dict[str, Any] = {"target": "", "module": "", "dtype": "float32"} | fields
        self.vertices.append(Vertex(index, name, kind, shape=shape, numel=math.prod(shape), **defaults))
        return index

    def input(self, numel: int, dtype: str = "int64") -> int:
        return self._add("input", numel, dtype=dtype, fixed="input")

    def weight(self, numel: int | tuple[int, ...], **fields: Any) -> int:
        return self._add("weight", numel, **({"storage": f"s{len(self.vertices)}"} | fields))

    def op(self, numel: int | tuple[int, ...], *operands: int, **fields: Any) -> int:
        return self._add("op", numel, operands=operands, **({"target": "aten.add.Tensor"} | fields))

    def graph(self, *outputs: int) -> ComputationGraph:
        return ComputationGraph(tuple(self.vertices), outputs or (len(self.vertices) - 1,))


def plan(graph: ComputationGraph, *formats: str) -> Plan:
    """The formats of the vertices that are not fixed, in order."""
    chosen = iter(formats)
    return Plan(tuple("" if v.fixed else next(chosen) for v in graph.vertices))


def uniform(graph: ComputationGraph, fmt: str) -> Plan:
    return Plan(tuple("" if v.fixed else fmt for v in graph.vertices))


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


# --- a real model -----------------------------------------------------------------------------------------------------


class Pico(nn.Module):
    """A transformer of one block with the ops that autocast treats differently."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(11, 8)
        self.ln_1, self.ln_2, self.ln_f = nn.LayerNorm(8), nn.LayerNorm(8), nn.RMSNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc, self.out = nn.Linear(8, 16), nn.Linear(16, 8)
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.wte.weight
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids)
        q, k, v = self.qkv(self.ln_1(x)).chunk(3, dim=-1)
        scores = (q @ k.transpose(-1, -2)) * self.scale
        scores = torch.cat([scores, scores.exp()], dim=-1)[..., : ids.shape[1]]
        x = x + self.ln_2(self.proj(scores.softmax(dim=-1) @ v))
        x = x + self.out(nn.functional.gelu(self.fc(x)))
        return self.lm_head(self.ln_f(x))


@pytest.fixture(scope="module")
def pico() -> tuple[ComputationGraph, torch.fx.GraphModule, torch.Tensor, list[str]]:
    """Its exported graph as vertices, without capture's help; the node of every vertex."""
    torch.manual_seed(0)
    ids = torch.tensor([[1, 5, 3, 7]])
    exported = torch.export.export(Pico().eval(), (ids,), strict=False)
    module = exported.module()
    assert isinstance(module, torch.fx.GraphModule)
    views = ("chunk", "getitem", "transpose", "slice", "t.default")
    index: dict[Any, int] = {}
    s, nodes = Sketch(), []
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "output" or not (isinstance(value, torch.Tensor) or "chunk" in str(node.target)):
            continue
        if any(view in str(node.target) for view in views):
            index[node] = index[node.all_input_nodes[0]]
            continue
        shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
        operands = dict.fromkeys(index[argument] for argument in node.all_input_nodes)
        if node.op == "placeholder":
            index[node] = s.input(value.numel(), dtype)
        elif node.op == "get_attr":
            tensor = module.get_parameter(node.target)
            index[node] = s.weight(
                shape, name=node.target, storage=str(tensor.data_ptr()), module=node.target.rpartition(".")[0]
            )
        else:
            index[node] = s.op(shape, *operands, target=str(node.target), dtype=dtype, module=node.name)
        nodes.append(node.name)
    return s.graph(), module, ids, nodes


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_plan_is_what_torch_does_on_this_cpu(pico: Any, name: str, dtype: torch.dtype) -> None:
    graph, module, ids, nodes = pico
    seen: dict[str, str] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                seen[n.name] = str(value.dtype).removeprefix("torch.")
            return value

    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        Watch(module).run(ids)
    formats = autocast_plan(graph, name, "cpu").formats
    predicted = {n: FORMATS[f].dtype for n, f in zip(nodes, formats, strict=True) if f}
    assert predicted == {n: seen[n] for n in predicted}
    assert Counter(predicted.values())[FORMATS[name].dtype] >= 9
    assert Counter(predicted.values())["float32"] > 10


def test_autocast_bytes_of_the_real_model(pico: Any) -> None:
    graph, _, _, _ = pico
    bytes32 = bytes_of(graph, uniform(graph, "fp32"))
    parameters = 88 + 16 + 16 + 8 + 1 + 8 * 24 + 24 + 8 * 8 + 8 + 8 * 16 + 16 + 16 * 8 + 8
    assert bytes32.weights == parameters * 4  # the head is the embedding: counted once
    found = autocast_bytes(graph, "bf16", "cpu")
    assert found.weights == parameters * 4  # the float32 masters stay
    linear = 8 * 24 + 24 + 8 * 8 + 8 + 8 * 16 + 16 + 16 * 8 + 8 + 88  # every Linear is copied once, the tied head too
    activations = 3 * 32  # the float32 inputs of qkv, fc and the head
    assert found.casts == 6 * (linear + activations)
    assert found.n_casts == 4 * 2 + 1 + 3
    assert found.activations_peak > linear * 2  # cached copies stay until the context ends
    # on CUDA, exp and ln_2 take float32 copies of 16 and 32 elements, and the float32 result of softmax is converted
    cuda = autocast_bytes(graph, "bf16", "cuda")
    assert cuda.casts == found.casts + 6 * (16 + 32 + 16)
    assert cuda.n_casts == found.n_casts + 3
    with pytest.raises(UsageError, match="no autocast to e4m3"):
        autocast_bytes(graph, "e4m3")


def test_autocast_leaves_float64_alone() -> None:
    s = Sketch()
    graph = s.graph(s.op(4, s.input(4, "float64"), s.weight(16, dtype="float64"), target="aten.linear.default"))
    assert autocast_plan(graph, "bf16", "cpu").formats[2] == "fp64"
    assert autocast_bytes(graph, "bf16", "cpu").n_casts == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.Linear(4, 4).double()(torch.ones(1, 4).double()).dtype == torch.float64


@pytest.mark.parametrize(("device", "key"), [("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")])
def test_op_lists_are_those_of_the_dispatcher(device: Device, key: str) -> None:
    registered = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    names = {name.removeprefix("aten::").split(".")[0] for name in registered if name.startswith("aten::")}
    lists = OP_LISTS[device]
    parts = [lists.lower, lists.fp32, lists.fp32_result, lists.promote]
    ours = frozenset().union(*parts)
    assert sum(map(len, parts)) == len(ours)
    # CUDA registers binary_cross_entropy in order to refuse it
    assert ours == names - ({"binary_cross_entropy"} if device == "cuda" else set())


def test_promotion_is_that_of_torch() -> None:
    reals = ("bf16", "fp16", "fp32", "fp64")
    for a in reals:
        for b in reals:
            expected = torch.promote_types(FORMATS[a].torch_dtype, FORMATS[b].torch_dtype)
            assert FORMATS[widest([a, b])].torch_dtype == expected
    assert widest([]) == ""


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


# --- granularity ------------------------------------------------------------------------------------------------------


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
