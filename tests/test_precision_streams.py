"""Residual streams: found, and their dominant entries followed exactly as emulation stores them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from cohomcli.precision.capture import Captured, Example, capture
from cohomcli.precision.execute import Emulator, run, store_value, uniform
from cohomcli.precision.inputs import shape_inputs
from cohomcli.precision.output_norm import bind
from cohomcli.precision.sensitivity import SensitivityOptions, contributions, predict, sensitivity
from cohomcli.precision.spec import Plan
from cohomcli.precision.streams import dominant_entries, find_streams, projections, roundings
from tests.test_precision_capture import Net, call_of, pico

N_LAYERS, WIDTH = 12, 256


class Stack(nn.Module):
    """x + u_1(z) + ... + u_L(z): the updates do not depend on the stream, whose first channel is massive."""

    def __init__(self, massive: float = 4000.0, bias: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, WIDTH) for _ in range(N_LAYERS))
        self.massive = nn.Parameter(torch.full((1,), massive))
        for layer in self.layers:
            layer.bias.data[0] += bias

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x[..., :1] + self.massive, x[..., 1:]], dim=-1)
        for layer in self.layers:
            x = x + layer(z)
        return x


def stack(n_inputs: int = 1, **settings: float) -> tuple[Captured, list[Example]]:
    generator = torch.Generator().manual_seed(7)
    examples = [
        Example((torch.randn(2, WIDTH, generator=generator), torch.randn(2, 8, generator=generator)))
        for _ in range(n_inputs)
    ]
    return capture(Stack(**settings).eval(), examples[0]), examples


def random_plan(captured: Captured, formats: tuple[str, ...], seed: int) -> Plan:
    """Random formats for the stream's sums and what they read, fp32 for the rest."""
    rng = np.random.default_rng(seed)
    vertices = captured.graph.vertices
    involved = {u for stream in find_streams(captured) for v in stream for u in (v, *vertices[v].operands)}
    return Plan(
        tuple("" if v.fixed else (str(rng.choice(formats)) if v.index in involved else "fp32") for v in vertices)
    )


def emulated_roundings(captured: Captured, example: Example, plan: Plan) -> dict[int, torch.Tensor]:
    """What every store of an emulated run under the plan adds."""
    vertices, added = captured.graph.vertices, {}

    def store(v: int, value: torch.Tensor) -> torch.Tensor:
        kept = value if vertices[v].fixed else store_value(vertices[v], value, plan.formats[v])
        added[v] = kept - value
        return kept

    run(captured, example, torch.float32, store)
    return added


def test_streams_are_the_residual_connections() -> None:
    captured = capture(pico("llama"), call_of("llama"))
    streams = find_streams(captured)
    assert [len(stream) for stream in streams] == [6]  # three layers, attention and mlp
    targets = {captured.graph.vertices[v].target for v in streams[0]}
    assert targets == {"aten.add.Tensor"}
    sums = [captured.graph.vertices[v] for v in streams[0]]
    assert all(before.index in after.operands for before, after in pairwise(sums))
    assert len(find_streams(capture(pico("gpt2"), call_of("gpt2")))[0]) == 7  # and token plus position
    assert find_streams(capture(Net().eval(), shape_inputs("2x3x8x8")[0])) == ()


def test_a_sum_of_permuted_entries_is_no_stream() -> None:
    class Permuted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(4):
                x = x + x.sin().transpose(0, 1)
            return x

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(4):
                x = torch.add(x, x.sin(), alpha=2)
            return x

    example = shape_inputs((4, 4))[0]
    assert find_streams(capture(Permuted().eval(), example)) == ()
    assert find_streams(capture(Scaled().eval(), example)) == ()


def test_dominant_entries_by_their_share() -> None:
    values = {0: torch.ones(1000), 1: torch.ones(1000)}
    values[0][[3, 500]], values[1][500] = 30.0, 100.0
    shares = [v.double().square() / v.double().square().sum() for v in values.values()]
    wanted = ((shares[0] + shares[1]) / 2 * 1000 > 64).nonzero().flatten().tolist()
    assert wanted == [3, 500]
    assert sorted(dominant_entries(values, (0, 1)).tolist()) == wanted
    assert len(dominant_entries({0: torch.zeros(10)}, (0,))) == 0


@pytest.mark.parametrize("formats", [("fp32", "bf16", "fp16"), ("bf16",), ("e4m3", "e5m2", "fp16")])
def test_following_is_what_emulation_stores(formats: tuple[str, ...]) -> None:
    """The stream's updates do not depend on it, so each dominant entry is rounded exactly as predicted."""
    captured, examples = stack(n_inputs=2)
    found = sensitivity(captured, examples, SensitivityOptions((*formats, "fp32"), n_probes=2))
    (stream,) = found.streams
    assert stream.example.tolist() == [0, 0, 1, 1]  # two rows each
    for seed in range(5):
        plan = random_plan(captured, formats, seed)
        added = []
        for example in examples:
            stored = emulated_roundings(captured, example, plan)
            added.append(torch.stack([stored[v][:, 0] for v, *_ in stream.sums]))
        wanted = torch.cat(added, dim=1).numpy()
        assert np.allclose(
            roundings(stream, plan), wanted, rtol=0, atol=3e-4
        )  # half an ulp of float32 at 4000 is 1.2e-4
        assert (wanted != 0).any()


def test_lost_updates_add_up() -> None:
    """Each update of about 1 is below half an ulp (16) of 4000 in bf16: twelve losses, all of one sign."""
    captured, examples = stack(n_inputs=4, bias=1.0)
    found = sensitivity(captured, examples, SensitivityOptions(("fp32", "bf16"), n_probes=64))
    (stream,) = found.streams
    sums = [v for v, *_ in stream.sums]
    plan = Plan(tuple("" if v.fixed else ("bf16" if v.index in sums else "fp32") for v in captured.graph.vertices))
    norm = bind(captured, examples, "rel-l2")
    measured = norm.error([Emulator(captured)(plan, x).outputs for x in examples])
    assert predict(found, plan) == pytest.approx(measured, rel=0.1)
    independent = float(np.sqrt(found.scores[sums, 1].sum()))  # each rounding as if the others were random
    assert not measured / 1.5 < independent < measured * 1.5
    _, x, first = stream.sums[0]
    updates = [stream.values[u] for _, _, u in stream.sums]
    kept = torch.from_numpy(stream.values[x] + stream.values[first]).to(torch.bfloat16).double().numpy()
    assert np.abs(updates).max() < 8.0
    exact = stream.values[x] + np.sum(updates, axis=0)
    assert roundings(stream, plan).sum(axis=0) == pytest.approx(kept - exact, abs=1e-3)


def test_known_roundings_are_projected_together() -> None:
    """Weights and dominant entries: mean_k (sum_v g_vk . d_v)^2; shares are covariances with the sum."""
    captured, examples = stack(n_inputs=3)
    found = sensitivity(captured, examples, SensitivityOptions(("fp32", "bf16"), n_probes=8))
    (stream,) = found.streams
    plan = uniform(captured, "bf16")
    d = roundings(stream, plan)
    along = projections(stream, plan, 3)
    assert found.weights is not None
    total = np.zeros((3, 8))
    for n in range(3):
        here = stream.example == n
        for k in range(8):
            wanted = (stream.gradients[:, k, here] * d[:, here]).sum(axis=1)
            assert along[:, n, k] == pytest.approx(wanted, rel=1e-9)
            total[n, k] = wanted.sum() + found.weights.values[:, 1, n, k].sum()
    known = (total**2).mean(axis=1).sum()
    sums, weights = [v for v, *_ in stream.sums], found.weights.vertices.tolist()
    minor = {entry.vertex: entry for entry in found.minor}
    assert set(minor) == set(sums)
    shares = contributions(found, plan)
    others = [v for v in range(len(shares)) if v not in (*sums, *weights)]
    rest = [entry.scores[-1, 1] for entry in found.minor]  # all operands on the grid of bf16
    assert shares.sum() - shares[others].sum() - sum(rest) == pytest.approx(known, rel=1e-9)
    for n, v in enumerate(weights):
        covariance = (found.weights.values[n, 1] * total).mean(axis=1).sum()
        assert shares[v] == pytest.approx(covariance, rel=1e-9, abs=1e-20)
    assert shares[weights].any()


def test_without_massive_entries_nothing_is_followed() -> None:
    captured, examples = stack(massive=0.0)
    found = sensitivity(captured, examples, SensitivityOptions(("fp32", "bf16"), n_probes=2))
    assert found.streams == ()
    assert found.minor == ()
    assert np.isfinite(predict(found, uniform(captured, "bf16")))
