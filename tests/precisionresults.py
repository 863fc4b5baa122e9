"""Precision results for the tests of the reports: hand-made networks, with bytes and sheaves from the engine's parts.

Only magnitudes, errors and scores are invented (drawn with a seed): bytes, obstruction sets, ranks and islands are
computed, by those parts of the engine that need no torch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from graphsketch import Sketch, uniform
from sampleresults import HOSTILE_NAMES, info

from cohomcli.precision.cohomology import label_cohomology, meet_cohomology
from cohomcli.precision.costs import autocast_bytes, bytes_of
from cohomcli.precision.result import (
    Baseline,
    BytesRow,
    CurvatureRow,
    FormatSummary,
    ObstructedOp,
    ObstructionSet,
    PlanRow,
    PrecisionResult,
    Round,
    SheafSummary,
    TradeOff,
    WeightRow,
    WeightsResult,
)
from cohomcli.precision.sheaf import islands, label_sheaf, obstructions
from cohomcli.precision.spec import Admissibility, ComputationGraph, Plan, Vertex
from cohomcli.precision.traffic import Bytes, stored_bytes
from cohomcli.results import Claim, Entry

FORMATS = ("fp32", "bf16", "fp16")
_D, _T = 64, 16


def llama(n_blocks: int) -> ComputationGraph:
    """A pre-norm decoder of small tensors with RMSNorm written out: 22 operations and 7 weights per block."""
    s = Sketch()
    tokens = s.input(_T)
    x = s.op((_T, _D), s.weight((500, _D), name="model.embed_tokens.weight", module="model.embed_tokens"), tokens,
             target="aten.embedding.default", module="model.embed_tokens", name="embedding")  # fmt: skip
    for k in range(n_blocks):
        x = _block(s, x, f"model.layers.{k}", k)
    x = _norm(s, x, "model.norm", "n")
    head = s.weight((500, _D), name="lm_head.weight", module="lm_head")
    s.op((_T, 500), x, head, target="aten.linear.default", module="lm_head", name="linear_out")
    return s.graph()


def _norm(s: Sketch, x: int, module: str, tag: str) -> int:
    weight = s.weight(_D, name=f"{module}.weight", module=module)
    square = s.op((_T, _D), x, target="aten.pow.Tensor_Scalar", module=module, name=f"pow_{tag}")
    mean = s.op((_T, 1), square, target="aten.mean.dim", module=module, name=f"mean_{tag}")
    root = s.op((_T, 1), mean, target="aten.rsqrt.default", module=module, name=f"rsqrt_{tag}")
    scaled = s.op((_T, _D), x, root, target="aten.mul.Tensor", module=module, name=f"mul_{tag}")
    return s.op((_T, _D), weight, scaled, target="aten.mul.Tensor", module=module, name=f"mul_w_{tag}")


def _linear(s: Sketch, x: int, module: str, tag: str, width: int = _D) -> int:
    inner = s.vertices[x].shape[-1]
    weight = s.weight((width, inner), name=f"{module}.weight", module=module)
    return s.op((_T, width), x, weight, target="aten.linear.default", module=module, name=f"linear_{tag}")


def _block(s: Sketch, x: int, block: str, k: int) -> int:
    attention, mlp = f"{block}.self_attn", f"{block}.mlp"
    h = _norm(s, x, f"{block}.input_layernorm", f"{k}a")
    q, key, v = (_linear(s, h, f"{attention}.{n}_proj", f"{k}{n}") for n in "qkv")
    scores = s.op((_T, _T), q, key, target="aten.matmul.default", module=attention, name=f"matmul_{k}")
    weights = s.op((_T, _T), scores, target="aten.softmax.int", module=attention, name=f"softmax_{k}")
    mixed = s.op((_T, _D), weights, v, target="aten.matmul.default", module=attention, name=f"matmul_v_{k}")
    out = _linear(s, mixed, f"{attention}.o_proj", f"{k}o")
    x = s.op((_T, _D), x, out, module=block, name=f"add_{k}a")
    h = _norm(s, x, f"{block}.post_attention_layernorm", f"{k}b")
    gate = _linear(s, h, f"{mlp}.gate_proj", f"{k}g", 4 * _D)
    act = s.op((_T, 4 * _D), gate, target="aten.silu.default", module=f"{mlp}.act_fn", name=f"silu_{k}")
    up = _linear(s, h, f"{mlp}.up_proj", f"{k}u", 4 * _D)
    both = s.op((_T, 4 * _D), act, up, target="aten.mul.Tensor", module=mlp, name=f"mul_{k}")
    down = _linear(s, both, f"{mlp}.down_proj", f"{k}d")
    return s.op((_T, _D), x, down, module=block, name=f"add_{k}b")


def mlp(n_layers: int) -> ComputationGraph:
    """Linear maps and ReLU in an nn.Sequential."""
    s = Sketch()
    x = s.input(_T, dtype="float32")
    for k in range(n_layers):
        x = s.op((_T, _D), x, s.weight((_D, _D), name=f"{2 * k}.weight", module=str(2 * k)),
                 target="aten.linear.default", module=str(2 * k), name=f"linear_{k}")  # fmt: skip
        x = s.op((_T, _D), x, target="aten.relu.default", module=str(2 * k + 1), name=f"relu_{k}")
    return s.graph()


def flat(n_ops: int) -> ComputationGraph:
    """A chain of operations without any module path."""
    s = Sketch()
    x = s.input(_T, dtype="float32")
    for k in range(n_ops):
        x = s.op((_T, 8), x, target="aten.tanh.default", name=f"tanh_{k}")
    return s.graph()


def one_op() -> ComputationGraph:
    return flat(1)


def result(
    graph: ComputationGraph, formats: tuple[str, ...] = FORMATS, seed: int = 0, **changes: object
) -> PrecisionResult:
    """What an analysis of `graph` would return: fp16 overflows at squares, a sixth of the rest is kept wide."""
    rng = np.random.default_rng(seed)
    largest = rng.lognormal(1.0, 1.0, len(graph.vertices)) * [4e5 if ".pow." in v.target else 1 for v in graph.vertices]
    allowed = _admissibility(graph, largest, formats)
    plan = _plan(graph, allowed, rng)
    rows = _rows(graph, plan, allowed, largest, rng)
    mine = _bytes(bytes_of(graph, plan))
    made = PrecisionResult(
        epsilon=1e-2,
        norm="rel-l2",
        formats=formats,
        objective="bytes",
        level="op",
        semantics="store",
        inputs="4 texts of builtin, 16 tokens each",
        n_calibration=4,
        n_heldout=4,
        outputs=("logits",),
        n_ops=sum(v.kind == "op" and not v.fixed for v in graph.vertices),
        n_weights=sum(v.kind == "weight" for v in graph.vertices),
        n_fixed=sum(bool(v.fixed) for v in graph.vertices),
        n_edges=len(graph.edges),
        n_parameters=sum(v.numel for v in graph.vertices if v.kind == "weight"),
        met=True,
        reason="",
        infeasible=False,
        predicted_error=9.1e-3,
        calibration_error=8.7e-3,
        measured_error=8.9e-3,
        fp32_error=3.2e-7,
        rounds=(
            Round(1e-2, 9.9e-3, 1.1e-2, 1.2e-2, mine.total - 64),
            Round(8.5e-3, 9.1e-3, 8.7e-3, 8.8e-3, mine.total),
        ),
        plan=rows,
        edges=_row_edges(graph),
        sheaf=_sheaf(graph, allowed),
        obstructions=_obstructions(graph, allowed),
        bytes_plan=mine,
        bytes_fp32=_bytes(bytes_of(graph, uniform(graph, "fp32"))),
        bytes_fp16=_bytes(bytes_of(graph, uniform(graph, "fp16"))),
        bytes_autocast=_bytes(autocast_bytes(graph, "fp16")),
        lower_bound=mine.total * 0.997,
        gap=0.003,
        baselines=_baselines(graph),
        pareto=_pareto(graph),
        curvature=_curvature(rows),
        n_probes=16,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def _admissibility(graph: ComputationGraph, largest: np.ndarray, formats: tuple[str, ...]) -> Admissibility:
    free = [v for v in graph.vertices if not v.fixed]
    reasons = {(v.index, f): why for v in free for f in formats if (why := _refusal(v, largest[v.index], f))}
    allowed = [[not v.fixed and (v.index, f) not in reasons for f in formats] for v in graph.vertices]
    return Admissibility(formats, np.array(allowed), reasons)


def _refusal(vertex: Vertex, largest: float, fmt: str) -> str:
    who = f"{vertex.target or vertex.kind} {vertex.name!r} in {vertex.module}"
    if fmt == "fp16" and 2 * largest > 65504:
        return f"{who} reaches {largest:.4g} in magnitude, beyond fp16's largest number 65504"
    if fmt == "int8" and (vertex.kind != "weight" or len(vertex.shape) < 2):
        return f"{who}: int8 per channel is for weights of two dimensions"
    return ""


def _bytes(counted: Bytes) -> BytesRow:
    return BytesRow(
        counted.total, counted.weights, counted.activations_traffic, counted.casts, counted.n_casts, counted.memory
    )


def _sheaf(graph: ComputationGraph, allowed: Admissibility) -> SheafSummary:
    sheaf = label_sheaf(graph, allowed)
    found, meet = label_cohomology(sheaf), meet_cohomology(sheaf)
    formats = tuple(
        FormatSummary(
            f.format, f.h0, f.h1, found.n_vertices - f.n_inadmissible, f.n_inadmissible, region.count,
            max(region.sizes, default=0), None if f.format == "fp32" else 0.004,
        )
        for f, region in zip(found.by_format, islands(sheaf), strict=True)
    )  # fmt: skip
    return SheafSummary(
        found.h0, found.h1, found.euler, found.n_vertices, found.n_edges, found.n_components, found.betti1,
        meet.h0, meet.h1, formats,
    )  # fmt: skip


def _obstructions(graph: ComputationGraph, allowed: Admissibility) -> tuple[ObstructionSet, ...]:
    def op(index: int, reason: str) -> ObstructedOp:
        v = graph.vertices[index]
        return ObstructedOp(v.name, v.target, v.module, v.kind, reason)

    return tuple(
        ObstructionSet(found.format, tuple(map(op, found.vertices, found.reasons)))
        for found in obstructions(label_sheaf(graph, allowed), allowed)
    )


def _plan(graph: ComputationGraph, allowed: Admissibility, rng: np.random.Generator) -> Plan:
    """Mostly the narrowest admissible format; norms and the head keep a wider one."""
    chosen = []
    for v in graph.vertices:
        fine = [f for f, ok in zip(allowed.formats, allowed.allowed[v.index], strict=True) if ok]
        wide = ("norm" in v.module and v.kind == "op") or rng.random() < 0.04
        chosen.append("" if v.fixed else fine[0] if wide or len(fine) < 2 else fine[-1])
    return Plan(tuple(chosen))


def _rows(
    graph: ComputationGraph, plan: Plan, allowed: Admissibility, largest: np.ndarray, rng: np.random.Generator
) -> tuple[PlanRow, ...]:
    free = [v for v in graph.vertices if not v.fixed]
    scores = rng.lognormal(0.0, 2.0, len(free)) * [1e-6 if plan.formats[v.index] == "fp32" else 1.0 for v in free]
    return tuple(
        PlanRow(
            op=v.name,
            target=v.target,
            module=v.module,
            kind=v.kind,
            shape=v.shape,
            format=plan.formats[v.index],
            reason=next(
                (
                    f"narrower is not admissible: {why}"
                    for f in allowed.formats
                    if (why := allowed.reasons.get((v.index, f)))
                ),
                f"{plan.formats[v.index]} saves casts: its neighbours are stored in it",
            ),
            share=float(score / scores.sum()),
            largest=float(largest[v.index]),
            bytes=stored_bytes(graph, v.index, plan.formats[v.index]),
        )
        for v, score in zip(free, scores, strict=True)
    )


def _row_edges(graph: ComputationGraph) -> tuple[tuple[int, int], ...]:
    row = {v.index: n for n, v in enumerate(v for v in graph.vertices if not v.fixed)}
    return tuple((row[u], row[v]) for u, v in graph.edges if u in row and v in row)


def _baselines(graph: ComputationGraph) -> tuple[Baseline, ...]:
    def of(name: str, label: str, error: float | None, fmt: str, n: int | None = 0) -> Baseline:
        row = autocast_bytes(graph, fmt) if "autocast" in name else bytes_of(graph, uniform(graph, fmt))
        return Baseline(name, label, "store", error, error is not None, _bytes(row), n)

    return (
        of("uniform-fp32", "uniform fp32", 3.2e-7, "fp32"),
        of("uniform-bf16", "uniform bf16", 1.6e-2, "bf16"),
        of("uniform-fp16", "uniform fp16", None, "fp16", 14),
        of("autocast-cuda-fp16", "autocast fp16 (CUDA lists)", 4.6e-3, "fp16"),
        of("autocast-cuda-bf16", "autocast bf16 (CUDA lists)", 3.6e-2, "bf16"),
        replace(of("half", "model.half()", 2.2e-3, "fp16", None), semantics="native CPU", note="its own upcasts kept"),
    )


def _pareto(graph: ComputationGraph) -> tuple[TradeOff, ...]:
    high, low = (bytes_of(graph, uniform(graph, f)).total for f in ("fp32", "fp16"))
    points = [TradeOff(1e-7, None, None, None)]
    for k, epsilon in enumerate(np.geomspace(1e-5, 1e-1, 8).tolist()):
        cost = low + (high - low) * (1 - k / 7) ** 1.5
        points.append(TradeOff(epsilon, 0.97 * epsilon, cost, cost * 0.995))
    return tuple(points)


def _curvature(rows: tuple[PlanRow, ...]) -> tuple[CurvatureRow, ...]:
    ops = [row for row in rows if row.kind == "op"][:4]
    forms = [(0.2722, "sqrt(6)/9", "largest for two classes"), (None, "", "")] * 2
    return tuple(
        CurvatureRow(row.op, row.target, row.module, bound, formula, reference, 0.2 + k, 1.0 + k)
        for k, (row, (bound, formula, reference)) in enumerate(zip(ops, forms, strict=False))
    )


@cache
def small() -> PrecisionResult:
    """Three blocks under a plan of fp32 and fp16; shared, since results are frozen."""
    return result(llama(3))


def infeasible(graph: ComputationGraph) -> PrecisionResult:
    """Nothing meets the tolerance, and that is proved in the model; there is no plan at all."""
    return result(
        graph, epsilon=1e-9, met=False, infeasible=True, reason="no assignment of these formats errs by at most 1e-09",
        predicted_error=None, calibration_error=None, measured_error=None, rounds=(), plan=(), edges=(),
        bytes_plan=None, lower_bound=None, gap=None, baselines=(), pareto=(), curvature=(),
    )  # fmt: skip


def hostile() -> PrecisionResult:
    """Every name that a model file supplies is an attack, and so are the reasons made of them."""
    made = result(llama(2))
    bad = HOSTILE_NAMES

    def named(n: int, row: PlanRow) -> PlanRow:
        name = bad[n % len(bad)]
        return replace(row, op=name, module=f"{name}.{n % 3}.{name}", target=bad[(n + 1) % len(bad)], reason=bad[3])

    rows = tuple(named(n, row) for n, row in enumerate(made.plan))
    sets = tuple(
        replace(s, ops=tuple(replace(op, op=bad[0], module=bad[2], target=bad[1], reason=bad[6]) for op in s.ops))
        for s in made.obstructions
    )
    return replace(
        made,
        plan=rows,
        obstructions=sets,
        inputs=bad[1],
        outputs=bad[:3],
        reason=bad[4],
        semantics=bad[0],
        notes=(bad[1], bad[7]),
        baselines=tuple(replace(b, name=bad[5], label=bad[0], note=bad[2]) for b in made.baselines),
        curvature=tuple(replace(c, op=bad[0], module=bad[1], formula=bad[3], reference=bad[6]) for c in made.curvature),
    )


def weights_result(n: int = 12) -> WeightsResult:
    """Tensors of an unknown architecture, one of which leaves fp16's range."""
    rng = np.random.default_rng(3)
    rows = []
    for k in range(n):
        refused = {"fp16": f"weight 'net.{k}.weight' reaches 1e+05 in magnitude, beyond fp16's 65504"} if k == 1 else {}
        errors = {"fp32": 0.0, "bf16": 1.6e-3 * rng.uniform(0.9, 1.1), "fp16": 2.0e-4 * rng.uniform(0.9, 1.1)}
        rows.append(
            WeightRow(
                f"net.{k}.weight", (64, 64), "float32", 4096, 1e5 if k == 1 else 0.5,
                {f: e for f, e in errors.items() if f not in refused}, refused,
            )
        )  # fmt: skip
    size = n * 4096
    return WeightsResult(
        why="the file is a state dict of an unknown architecture",
        formats=FORMATS,
        weights=tuple(rows),
        n_parameters=size,
        bytes_stored=4 * size,
        bytes_by_format={"fp32": 4 * size, "bf16": 2 * size, "fp16": 2 * size + 2 * 4096},
        notes=("the optimiser's state in the file was left out",),
    )


def precision_entry(
    model: str = "tiny-llama", made: PrecisionResult | WeightsResult | None = None, **changes: object
) -> Entry:
    """An entry with precision alone: no texts, no topology."""
    whole = Entry(
        model=model,
        dataset="",
        info=info(model),
        claims=(
            Claim("the plan's held-out error", "measured"),
            Claim("S_fp16 names every obstructed operation", "proved-in-model", "artifacts/certificate.json"),
        ),
        precision=made if made is not None else small(),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]
