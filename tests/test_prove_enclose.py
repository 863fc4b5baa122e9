"""The ball interpreter against float64, mpmath and PyTorch: enclosures hold the truth, and are tight."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from provemodels import MODELS, built
from torch import nn

flint = pytest.importorskip("flint")

from cohomcli.errors import AnalysisIncomplete, UsageError  # noqa: E402
from cohomcli.models.load import load  # noqa: E402
from cohomcli.models.resolve import resolve  # noqa: E402
from cohomcli.models.spec import LoadOptions  # noqa: E402
from cohomcli.precision.capture import Captured, capture  # noqa: E402
from cohomcli.precision.execute import run  # noqa: E402
from cohomcli.precision.prove.enclosure import write_enclosure  # noqa: E402
from cohomcli.precision.prove.lowering import as_array, known_values, lowered, plain_graph  # noqa: E402
from cohomcli.precision.prove.package import Package  # noqa: E402
from cohomcli.verify import enclose as enclosing  # noqa: E402
from cohomcli.verify import functions as fn  # noqa: E402
from cohomcli.verify.arrays import Undecided, Unsupported, balls, compare  # noqa: E402
from cohomcli.verify.enclose import enclose, forecast, start_precision  # noqa: E402
from cohomcli.verify.graph import BadGraph, read_graph  # noqa: E402
from cohomcli.verify.table import find  # noqa: E402
from cohomcli.verify.table import load as load_table  # noqa: E402


@cache
def captured_of(name: str) -> tuple[Captured, Any]:
    """A model of `provemodels` captured once, and its example call."""
    model, example = built(name)
    return capture(model, example), example


def enclosed(captured: Captured, example: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per output (balls, float64 reference)."""
    graph = lowered(captured)
    found = enclose(graph, known_values(captured, example), set(graph.outputs.values()))
    references = run(captured, example, torch.float64)
    return [
        (balls(found.values[slot]), reference.numpy())
        for (_, slot), reference in zip(captured.program.outputs, references, strict=True)
    ]


def agree(x: np.ndarray, reference: np.ndarray, slack: float = 1e-13) -> None:
    """Balls hold the reference up to float64's own error, and are far narrower than that error."""
    scale = float(np.abs(reference).max()) or 1.0
    assert x.shape == reference.shape
    for ball, value in zip(x.ravel().tolist(), reference.ravel().tolist(), strict=True):
        assert abs(ball - flint.arb(value)) < slack * scale
        assert ball.rad() < 2.0**-70 * scale


@pytest.mark.parametrize("name", MODELS)
def test_models_agree_with_float64(name: str) -> None:
    for x, reference in enclosed(*captured_of(name)):
        agree(x, reference)


@pytest.mark.parametrize("name", ["tiny-gpt", "tiny-bert"])
def test_the_built_in_models_agree_with_float64(name: str) -> None:
    loaded = load(resolve(name), LoadOptions())
    loaded.model.set_attn_implementation("eager")
    example = {"input_ids": torch.tensor([[5, 77, 9]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    call = example | ({"use_cache": False} if name == "tiny-gpt" else {})
    for x, reference in enclosed(capture(loaded.model, call), call):
        agree(x, reference)


def test_a_transformer_block_against_sixty_digits_of_mpmath() -> None:
    """A hand-written pre-norm MLP block with softmax, evaluated by another library in another order."""
    torch.manual_seed(1)
    norm, up, down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = norm, up, down

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x + self.down(torch.nn.functional.gelu(self.up(self.norm(x)))), -1)

    x = torch.randn(1, 6)
    ((found, _),) = enclosed(capture(Block().eval(), (x,)), (x,))
    with mpmath.workdps(60):
        v = [mpmath.mpf(t) for t in x[0].tolist()]
        mean = sum(v) / 6
        variance = sum((t - mean) ** 2 for t in v) / 6
        h = [(t - mean) / mpmath.sqrt(variance + mpmath.mpf(norm.eps)) for t in v]
        a = [
            sum(mpmath.mpf(w) * t for w, t in zip(row, h, strict=True)) + b
            for row, b in zip(up.weight.tolist(), up.bias.tolist(), strict=True)
        ]
        g = [t * mpmath.ncdf(t) for t in a]
        rows = zip(v, down.weight.tolist(), down.bias.tolist(), strict=True)
        y = [t + sum(mpmath.mpf(w) * s for w, s in zip(row, g, strict=True)) + b for t, row, b in rows]
        total = sum(mpmath.exp(t) for t in y)
        for ball, t in zip(found[0].tolist(), y, strict=True):
            truth = mpmath.exp(t) / total
            with flint.ctx.workprec(300):
                assert abs(ball - flint.arb(mpmath.nstr(truth, 50))) < flint.arb(10) ** -30


@pytest.mark.parametrize(
    ("function", "truth"),
    [
        (fn.tanh, mpmath.tanh),
        (fn.sigmoid, lambda x: 1 / (1 + mpmath.exp(-x))),
        (fn.gelu, lambda x: x * mpmath.ncdf(x)),
        (fn.softplus, lambda x: mpmath.log(1 + mpmath.exp(x))),
        (fn.silu, lambda x: x / (1 + mpmath.exp(-x))),
        (fn.mish, lambda x: x * mpmath.tanh(mpmath.log(1 + mpmath.exp(x)))),
        (fn.rsqrt, lambda x: 1 / mpmath.sqrt(x)),
    ],
)
def test_functions_against_mpmath_as_balls_and_as_series(function: Any, truth: Any) -> None:
    for x in (0.3, 2.0, 11.0) if function is fn.rsqrt else (-9.0, -0.7, 0.3, 4.0):
        with mpmath.workdps(50), flint.ctx.workprec(180):
            want = [flint.arb(mpmath.nstr(v, 40)) for v in (truth(mpmath.mpf(x)), mpmath.diff(truth, mpmath.mpf(x)))]
            assert abs(function(flint.arb(x)) - want[0]) < 1e-30 * (1 + abs(want[0]))
            series = function(flint.arb_series([flint.arb(x), 1], prec=2))
            assert abs(series[0] - want[0]) < 1e-30 * (1 + abs(want[0]))
            assert abs(series[1] - want[1]) < 1e-15


A, B = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(3, 4), torch.linspace(0.5, 3, 12).double().reshape(3, 4)
C = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)
INDEX = torch.tensor([[0, 2], [1, 1], [3, 0]])
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("add.Tensor", (A, B), {"alpha": 3}), ("sub.Tensor", (A, B), {}), ("mul.Tensor", (A, B), {}),
    ("div.Tensor", (A, B), {}), ("div.Tensor_mode", (A, B), {"rounding_mode": "floor"}), ("rsub.Scalar", (A, 2.0), {}),
    ("remainder.Tensor", (A, B), {}), ("pow.Tensor_Scalar", (A, 3), {}), ("pow.Tensor_Scalar", (B, -1.5), {}),
    ("pow.Tensor_Tensor", (B, A), {}), ("exp", (A,), {}), ("log", (B,), {}), ("log1p", (B,), {}), ("sqrt", (B,), {}),
    ("rsqrt", (B,), {}), ("reciprocal", (B,), {}), ("sin", (A,), {}), ("cos", (A,), {}), ("tanh", (A,), {}),
    ("erf", (A,), {}), ("sigmoid", (A,), {}), ("silu", (A,), {}), ("gelu", (A,), {}), ("abs", (A,), {}),
    ("gelu", (A,), {"approximate": "tanh"}), ("relu", (A,), {}), ("elu", (A,), {}), ("leaky_relu", (A, 0.2), {}),
    ("softplus", (A,), {}), ("hardtanh", (A,), {}), ("hardsigmoid", (A,), {}), ("hardswish", (A,), {}),
    ("mish", (A,), {}), ("clamp", (A, -1, 1), {}), ("floor", (A,), {}), ("ceil", (A,), {}), ("round", (B,), {}),
    ("trunc", (A,), {}), ("sign", (A,), {}), ("maximum", (A, B), {}), ("minimum", (A, B), {}), ("neg", (A,), {}),
    ("sum.dim_IntList", (A, [1], True), {}), ("mean.dim", (A, [0]), {}), ("amax", (A, [1]), {}), ("amin", (A, [0]), {}),
    ("var.correction", (A, [1]), {"correction": 1}), ("prod.dim_int", (B, 1), {}), ("cumsum", (A, 1), {}),
    ("linalg_vector_norm", (A,), {}), ("argmax", (A, 1), {}), ("expm1", (A,), {}), ("exp2", (A,), {}),
    ("matmul", (A, C), {}), ("mm", (A, C), {}), ("addmm", (C[0], A, C), {"beta": 0.5, "alpha": 2}),
    ("linear", (A, B), {}), ("baddbmm", (A[None, :, :3], A[None], B[None].mT), {}),
    ("softmax.int", (A, 1), {}), ("log_softmax.int", (A, 0), {}), ("logsumexp", (A, [1]), {}),
    ("layer_norm", (A, [4], B[0], A[0], 1e-5), {}), ("rms_norm", (A, [4], B[0], 1e-6), {}),
    ("where.self", (A > 0, A, B), {}), ("masked_fill.Scalar", (A, A > 0, -1.0), {}), ("tril", (A,), {}),
    ("triu", (A, 1), {}), ("gather", (A, 1, INDEX), {}), ("index_select", (A, 1, INDEX[0]), {}), ("flip", (A, [0]), {}),
    ("roll", (A, [1], [1]), {}), ("constant_pad_nd", (A, [1, 2, 0, 1], 0.5), {}), ("repeat", (A, [2, 1, 1]), {}),
    ("permute", (A, [1, 0]), {}), ("slice.Tensor", (A, 1, 1, 4, 2), {}), ("select.int", (A, 0, -1), {}),
    ("cat", ([A, B], 1), {}), ("stack", ([A, B], 2), {}), ("diagonal", (A,), {}), ("unsqueeze", (A, -1), {}),
    ("embedding", (A, INDEX.clamp(max=2)), {}), ("index.Tensor", (A, [None, INDEX[0]]), {}), ("addcmul", (A, A, B), {}),
    ("avg_pool2d", (A[None, None], [2, 2]), {}), ("max_pool2d", (A[None, None], [2, 2], [1, 1], [1, 1]), {}),
    ("adaptive_avg_pool2d", (A[None, None], [2, 3]), {}), ("lerp.Scalar", (A, B, 0.3), {}),
    ("scaled_dot_product_attention", (A[None], B[None], A[None]), {"is_causal": True}),
    ("conv1d", (A[None], C[:2, :3].reshape(2, 3, 1), C[0, :2], [2], [1], [1]), {}),
    ("conv2d", (A[None, None], C[:2, :4].reshape(2, 1, 2, 2), None, [1, 1], [1, 1], [2, 1]), {}),
    ("group_norm", (A.reshape(1, 4, 3), 2, B[0], A[0]), {}), ("bitwise_not", (A > 0,), {}), ("ge.Scalar", (A, 0.5), {}),
]  # fmt: skip


def to_interpreter(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return balls(as_array(x)) if x.is_floating_point() else as_array(x)
    return [to_interpreter(item) for item in x] if isinstance(x, list) and any(torch.is_tensor(t) for t in x) else x


@pytest.mark.parametrize(("name", "args", "kwargs"), CALLS, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(CALLS)])
def test_operations_agree_with_torch_in_float64(name: str, args: Any, kwargs: Any) -> None:
    packet, _, overload = name.partition(".")
    want = getattr(getattr(torch.ops.aten, packet), overload or "default")(*args, **kwargs)
    with flint.ctx.workprec(128):
        found = find(f"aten.{name}")(*(to_interpreter(a) for a in args), **kwargs)
        assert found.shape == tuple(want.shape)
        if want.dtype.is_floating_point:
            agree(balls(found), want.numpy(), 1e-14)
        else:
            assert np.array_equal(found, want.numpy())


def test_most_of_the_table_is_tested_here_or_by_a_model() -> None:
    used = {name.partition(".")[0] for name, _, _ in CALLS}
    for model in MODELS:
        used |= {step.op.split(".")[1] for step in lowered(captured_of(model)[0]).steps if step.op != "getitem"}
    assert len(used & {name.partition(".")[0] for name in load_table()}) >= 95


# ---- refusals, precision, memory ----


def test_an_unknown_operation_is_refused_by_name() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(Unsupported, match=r"aten\.special_bessel_j0"):
        plain_graph(capture(Odd().eval(), (torch.ones(2),)))


def test_an_undecided_comparison_is_not_guessed() -> None:
    third = balls(np.array([1.0])) / 3
    with pytest.raises(Undecided):
        compare("lt", third, third)
    with pytest.raises(Undecided):
        fn.floor((third * 3)[0])


def test_precision_doubles_until_a_comparison_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """x - (x - 2^-200) > 0 needs over 200 bits; a graph of two comparisons asks for them."""
    steps: list[tuple[str, list[Any], int]] = [
        ("aten.exp.default", [{"slot": 0}], 1),
        ("aten.add.Tensor", [{"slot": 1}, 2.0**-200], 2),
        ("aten.gt.Tensor", [{"slot": 2}, {"slot": 1}], 3),
        ("aten.where.ScalarSelf", [{"slot": 3}, 1.0, {"slot": 1}], 4),
    ]
    graph = read_graph({
        "schema": "cohom.graph/1", "held": [], "arguments": [{"slot": 0, "name": "x"}],
        "instructions": [{"op": o, "args": a, "kwargs": {}, "out": n, "shape": [1]} for o, a, n in steps],
        "outputs": [{"name": "y", "slot": 4}],
    })  # fmt: skip
    found = enclose(graph, {0: np.array([1.0])}, {4})
    assert found.precision == 256
    assert balls(found.values[4])[0] == 1
    monkeypatch.setattr(enclosing, "MOST_BITS", 128)
    with pytest.raises(AnalysisIncomplete, match="128 bits"):
        enclose(graph, {0: np.array([1.0])}, {4})


def test_memory_is_forecast_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, call = captured_of("gpt2")
    graph, known = lowered(captured), known_values(captured, call)
    wanted = set(graph.outputs.values())
    small = forecast(graph, known, wanted, 128)
    assert 10_000 < small < forecast(graph, known, wanted, 4096)
    monkeypatch.setattr(enclosing, "available_bytes", lambda: 1000)
    with pytest.raises(AnalysisIncomplete, match="GiB"):
        enclosing.check_memory(graph, known, wanted, 128)


def test_deeper_models_start_with_more_bits() -> None:
    assert start_precision(lowered(captured_of("mlp")[0])) < start_precision(lowered(captured_of("llama")[0]))


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "cohom.graph/2"},
        {"outputs": [{"name": "y", "slot": 9}]},
        {"instructions": [{"op": "aten.exp.default", "args": [{"slot": 7}], "kwargs": {}, "out": 1, "shape": []}]},
        {"instructions": [{"op": "aten.exp.default", "args": [{"odd": 7}], "kwargs": {}, "out": 1, "shape": []}]},
        {"held": [{"slot": 0, "name": "w"}]},
        {"arguments": 3},
    ],
)
def test_damaged_graphs_are_refused(damage: dict[str, Any]) -> None:
    graph = {"schema": "cohom.graph/1", "held": [], "arguments": [{"slot": 0, "name": "x"}], "instructions": [],
             "outputs": [{"name": "y", "slot": 0}]}  # fmt: skip
    read_graph(graph)
    with pytest.raises(BadGraph):
        read_graph(graph | damage)


def test_softmax_of_a_masked_row_is_exact_where_it_is_masked() -> None:
    with flint.ctx.workprec(100):
        scores = balls(np.array([[0.5, -math.inf, 1.0, -3.4028234663852886e38]]))
        found = find("aten.softmax.int")(scores, -1)[0]
        assert found[1] == 0
        assert 0 <= float(found[3]) < 1e-300
        assert abs(found[0] + found[2] - 1) < 1e-25


def test_an_enclosure_of_selected_entries_is_certified(tmp_path: Path) -> None:
    captured, call = captured_of("bert")
    reference = run(captured, call, torch.float64)[0].flatten()
    written = write_enclosure(captured, call, ("logits", [3, 40]), Package(tmp_path, "bert", captured, {}))
    assert written is not None
    claim = json.loads(written.path.read_text())["claim"]
    for i, low, high in zip([3, 40], claim["lower"], claim["upper"], strict=True):
        assert float.fromhex(low) == pytest.approx(float(reference[i]), rel=1e-12)
        assert float.fromhex(high) <= np.nextafter(float.fromhex(low), np.inf)
    for place in (("loss", [0]), ("logits", [10**6])):
        with pytest.raises(UsageError):
            write_enclosure(captured, call, place, Package(tmp_path, "bert", captured, {}))
