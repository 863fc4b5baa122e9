"""Capture, execution and ranges: the program is the module, the graph is its program, emulation is per-op rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.precision.capture import Captured, Example, capture
from cohomcli.precision.execute import Emulator, run, store_value, uniform
from cohomcli.precision.inputs import TextOptions, file_inputs, parse_shape, shape_inputs, text_inputs
from cohomcli.precision.ranges import admissibility, ranges
from cohomcli.precision.recording import record
from cohomcli.precision.spec import Plan
from cohomcli.precision.vertices import build_graph
from tests import tinymodels

SEQUENCE = ("gpt2", "bert", "llama", "t5", "bart")


class Net(nn.Module):
    """A residual convolution net with in-place ops, frozen batch norm, a no_grad region and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.act, self.pool, self.head = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Linear(8, 5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.act(self.norm(self.conv(x)))
        y += 0.5
        with torch.no_grad():
            scale = y.mean(dim=(2, 3), keepdim=True) + torch.tensor([2.0])
        first, _ = (self.pool(y) * scale).mean((2, 3)).split(8, dim=1)
        return {"logits": self.head(first), "features": first.view(-1, 2, 4).transpose(1, 2)}


class Branching(nn.Module):
    """What torch.export refuses: a branch and a number taken from the data; writes into a slice of a result."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x)) if bool(x.sum() > 0) else self.second(x)
        h = self.norm(h + float(h.abs().max()))
        h[:, :2] = 0.0
        return h.mul_(2.0)


def call_of(name: str, seed: int = 0) -> dict[str, Any]:
    """A call of a pico model: one sentence of 9 tokens; encoder-decoders get 7 decoder tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, tinymodels.VOCAB, (1, 9), generator=generator)
    found: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    if name in tinymodels.SEQ2SEQ:
        found["decoder_input_ids"] = torch.randint(4, tinymodels.VOCAB, (1, 7), generator=generator)
    if name in tinymodels.MASKED:
        del found["use_cache"]
    return found


def pico(name: str, **overrides: Any) -> Any:
    """A pico model with eager attention."""
    model = tinymodels.build(name, **overrides)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module", params=[*SEQUENCE, "net", "mlp"])
def case(request: pytest.FixtureRequest) -> tuple[Any, Example, Captured]:
    """(module, one call, its capture)."""
    if request.param == "net":
        model: Any = Net().eval()
        example = shape_inputs("2x3x8x8")[0]
    elif request.param == "mlp":
        model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)).eval()
        example = shape_inputs((3, 6))[0]
    else:
        model, example = pico(request.param), Example((), call_of(request.param))
    return model, example, capture(model, example)


def results(model: Any, example: Example) -> dict[str, torch.Tensor]:
    """What the module itself returns, by name."""
    with torch.no_grad():
        found = model(*example.args, **(example.kwargs or {}))
    return dict(found.items()) if hasattr(found, "items") else {"output": found}


# --- capture ----------------------------------------------------------------------------------------------------------


def test_replay_is_the_module_bit_for_bit(case: tuple[Any, Example, Captured]) -> None:
    model, example, captured = case
    wanted = results(model, example)
    assert not captured.fallback
    for (name, _), value in zip(captured.program.outputs, run(captured, example), strict=True):
        assert torch.equal(value, wanted[name]), name
    reference = run(captured, example, torch.float64)
    assert all(y.dtype == torch.float64 for y in reference)
    assert all(
        torch.allclose(y.double(), r, rtol=1e-3, atol=1e-4)
        for y, r in zip(run(captured, example), reference, strict=True)
    )


def test_paths_names_and_order_are_those_of_the_module(case: tuple[Any, Example, Captured]) -> None:
    model, _, captured = case
    modules = {name for name, _ in model.named_modules()}
    tensors = {name for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
    assert all(u < v for u, v in captured.graph.edges)
    for vertex in captured.graph.vertices:
        assert vertex.module in modules
        if vertex.kind == "op":
            assert vertex.target.startswith("aten.")
            assert not any(view in vertex.target for view in ("view", "transpose", "slice", "expand", "getitem"))
        elif vertex.kind == "weight" and vertex.fixed != "constant":
            assert vertex.name in tensors
            assert vertex.name.rpartition(".")[0] == vertex.module


def test_every_parameter_in_use_is_one_vertex(case: tuple[Any, Example, Captured]) -> None:
    model, _, captured = case
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    held = [v for v in captured.graph.vertices if v.kind == "weight" and v.name in parameters]
    assert len({v.storage for v in held}) == len(held)
    assert sum(v.numel for v in held) == sum(p.numel() for p in model.parameters())  # tied ones counted once


def test_a_tied_weight_is_one_vertex_with_both_readers() -> None:
    captured = capture(pico("gpt2"), call_of("gpt2"))
    (tied,) = [v for v in captured.graph.vertices if v.shape == (tinymodels.VOCAB, tinymodels.HIDDEN)]
    readers = [v.target for v in captured.graph.vertices if tied.index in v.operands]
    assert readers == ["aten.embedding.default", "aten.linear.default"]


def test_what_has_no_format_to_choose_says_why() -> None:
    gpt2 = capture(pico("gpt2"), call_of("gpt2")).graph
    assert {v.fixed for v in gpt2.vertices} == {"", "input", "integer", "mask constant"}
    masked = [v for v in gpt2.vertices if v.mask_level]
    assert {v.target for v in masked} == {"aten.add.Tensor"}
    assert len(masked) == 3  # one addition of the mask per layer
    assert {v.mask_level for v in masked} == {float(torch.finfo(torch.float32).min)}
    t5 = capture(pico("t5"), call_of("t5")).graph
    discrete = [v.target for v in t5.vertices if v.fixed == "discrete"]
    assert "aten.log.default" in discrete  # the logarithm that only chooses a relative position's bucket


def test_outputs_that_do_not_count_leave_the_graph() -> None:
    model, example = Net().eval(), shape_inputs("2x3x8x8")[0]
    captured = capture(model, example, ["features"])
    assert "head.weight" not in {v.name for v in captured.graph.vertices}
    assert torch.equal(run(captured, example)[0], results(model, example)["features"])
    with pytest.raises(UsageError, match="no output 'feature'"):
        capture(model, example, ["feature"])


def test_inputs_that_do_not_fit_are_refused() -> None:
    model, example = Net().eval(), shape_inputs("2x3x8x8")[0]
    captured = capture(model, example)
    with pytest.raises(UsageError, match=r"captured with \(2, 3, 8, 8\)"):
        run(captured, shape_inputs("3x3x8x8")[0])
    with pytest.raises(UsageError, match="structure"):
        run(captured, Example((*example.args, torch.ones(1))))
    with pytest.raises(UsageError, match="training mode"):
        capture(Net().train(), example)
    with pytest.raises(UsageError, match=r"call model.float\(\)"):
        capture(Net().eval().half(), example)
    with pytest.raises(AnalysisIncomplete, match="cannot be recorded: RuntimeError"):
        capture(model, shape_inputs("2x4x8x8")[0])


def test_what_export_refuses_is_recorded_and_says_so() -> None:
    model, example = Branching().eval(), Example((torch.randn(4, 8, generator=torch.Generator().manual_seed(3)).abs(),))
    captured = capture(model, example)
    assert captured.fallback.startswith("torch.export failed: ")
    assert torch.equal(run(captured, example)[0], model(*example.args))
    names = {v.name for v in captured.graph.vertices}
    assert "first.weight" in names
    assert "second.weight" not in names  # the branch that the example does not take
    assert {v.module for v in captured.graph.vertices} >= {"first", "norm"}
    outputs = Emulator(captured)(uniform(captured, "bf16"), example).outputs[0]
    assert 0 < float((outputs - model(*example.args)).norm() / outputs.norm()) < 0.02


@pytest.mark.parametrize("name", ["bert", "llama", "bart"])
def test_recording_agrees_with_export(name: str) -> None:
    model, example = pico(name), Example((), call_of(name))
    exported = capture(model, example)
    program = record(model, example.args, dict(example.kwargs or {}))
    graph, layout = build_graph(program)
    recorded = Captured(graph, program, layout, example, "for the test")
    index = [n for n, _ in program.outputs].index("logits")
    assert torch.equal(run(recorded, example)[index], results(model, example)["logits"])
    weights = [{v.name for v in g.vertices if v.kind == "weight" and not v.fixed} for g in (graph, exported.graph)]
    assert weights[0] == weights[1]


# --- emulation --------------------------------------------------------------------------------------------------------


class _RoundEverything(fx.Interpreter):
    """An independent emulator: every real result of the exported graph goes through a 16-bit dtype and back."""

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(module)
        self.dtype = dtype

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        return result if n.op == "placeholder" else torch.utils._pytree.tree_map(self.narrow, result)

    def narrow(self, x: Any) -> Any:
        return x.to(self.dtype).to(torch.float32) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


@pytest.mark.parametrize(("fmt", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("name", ["gpt2", "bert", "net"])
def test_uniform_emulation_is_native_rounding_of_every_op(name: str, fmt: str, dtype: torch.dtype) -> None:
    model = Net().eval() if name == "net" else pico(name)
    example = shape_inputs("2x3x8x8")[0] if name == "net" else Example((), call_of(name))
    captured = capture(model, example)
    got = Emulator(captured)(uniform(captured, fmt), example)
    exported = torch.export.export(model, example.args, dict(example.kwargs or {}), strict=False)
    exported = exported.run_decompositions({})
    module = exported.module()
    flat = torch.utils._pytree.tree_leaves((example.args, dict(example.kwargs or {})))
    wanted = _RoundEverything(module, dtype).run(*flat)
    wanted = torch.utils._pytree.tree_leaves(wanted)
    assert not got.overflow
    for y, w in zip(got.outputs, wanted, strict=True):
        assert torch.equal(y, w)


def test_uniform_fp32_is_the_module_and_fp64_the_reference(case: tuple[Any, Example, Captured]) -> None:
    _, example, captured = case
    emulate = Emulator(captured)
    for fmt, dtype in (("fp32", torch.float32), ("fp64", torch.float64)):
        for got, wanted in zip(
            emulate(uniform(captured, fmt), example).outputs, run(captured, example, dtype), strict=True
        ):
            assert torch.equal(got, wanted)
    with pytest.raises(UsageError, match="the plan has 1 formats"):
        emulate(Plan(("fp32",)), example)


def test_weights_are_stored_per_format_and_per_channel() -> None:
    model = nn.Sequential(nn.Linear(8, 4, bias=False)).eval()
    example = shape_inputs((2, 8))[0]
    captured = capture(model, example)
    weight = next(v for v in captured.graph.vertices if v.kind == "weight")
    formats = ["" if v.fixed else "fp32" for v in captured.graph.vertices]
    formats[weight.index] = "int8"
    w = model[0].weight.detach()
    scale = w.abs().amax(dim=1, keepdim=True) / 127
    expected = example.args[0] @ (torch.round(w / scale) * scale).T
    got = Emulator(captured)(Plan(tuple(formats)), example).outputs[0]
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_padding_and_masks_do_not_overflow() -> None:
    call = call_of("gpt2") | {"attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])}  # rows that see nothing
    captured = capture(pico("gpt2"), call)
    found = Emulator(captured)(uniform(captured, "fp16"), call)
    assert not found.overflow
    assert found.finite
    reference = run(captured, call, torch.float64)[0][0, 3:]
    assert float((found.outputs[0][0, 3:] - reference).norm() / reference.norm()) < 5e-3
    masked = next(v for v in captured.graph.vertices if v.mask_level)
    stored = store_value(masked, torch.tensor([1.0, masked.mask_level, -7e4]), "fp16")
    assert stored.tolist() == [1.0, -65504.0, -np.inf]  # a mask saturates, a real -7e4 overflows


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def massive() -> tuple[Any, Captured, dict[str, Any]]:
    """A llama with one massive activation: a residual channel of about 1e6, as trained models have smaller ones."""
    model = pico("llama")
    with torch.no_grad():
        mlp = model.model.layers[1].mlp
        mlp.down_proj.weight[3] *= 3e4
        mlp.gate_proj.weight *= 10
        mlp.up_proj.weight *= 10
    call = call_of("llama")
    return model, capture(model, call), call


def test_a_massive_activation_is_named_and_avoided(massive: tuple[Any, Captured, dict[str, Any]]) -> None:
    model, captured, call = massive
    assert not bool(torch.isfinite(model.half()(**call).logits).all())
    model.float()
    found = ranges(captured, [call])
    allowed = admissibility(captured.graph, found, ("fp32", "bf16", "fp16"))
    refused = {v for v, f in allowed.reasons if f == "fp16"}
    assert not any(f in ("fp32", "bf16") for _, f in allowed.reasons)
    down = next(v for v in captured.graph.vertices if v.module == "model.layers.1.mlp.down_proj" and v.kind == "op")
    reason = allowed.reasons[down.index, "fp16"]
    assert reason.startswith(f"aten.linear.default '{down.name}' in model.layers.1.mlp.down_proj reaches ")
    assert reason.endswith("in magnitude, beyond fp16's largest number 65504")
    everywhere = Emulator(captured)(uniform(captured, "fp16"), call)
    assert set(everywhere.overflow) <= refused
    assert down.index in everywhere.overflow
    assert not any(captured.graph.vertices[v].mask_level for v in everywhere.overflow)
    assert not everywhere.finite
    column = dict(enumerate(allowed.allowed[:, 2].tolist()))
    mixed = Emulator(captured)(uniform(captured, "fp16", column), call)
    assert mixed.finite
    assert not mixed.overflow
    free = [v for v in captured.graph.vertices if not v.fixed]
    assert sum(column[v.index] for v in free) >= 0.8 * len(free)


def test_ranges_are_the_extremes_of_what_is_stored() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    examples = shape_inputs((5, 4), n=3)
    captured = capture(model, examples[0])
    found = ranges(captured, examples)
    values = torch.cat([model[0](x.args[0]).detach() for x in examples])
    linear, relu = (v.index for v in captured.graph.vertices if v.kind == "op")
    assert found.max_abs[linear] == pytest.approx(float(values.abs().max()))
    assert found.min_abs[linear] == pytest.approx(float(values.abs().min()))
    assert found.min_abs[relu] == pytest.approx(float(values[values > 0].min()))


def test_admissibility_rules_and_their_reasons() -> None:
    model, example = Net().eval(), shape_inputs("2x3x8x8")[0]
    with torch.no_grad():
        model.head.bias.mul_(0).add_(1e-9)
    captured = capture(model, example)
    found = ranges(captured, [example])
    names = {v.name: v.index for v in captured.graph.vertices}
    allowed = admissibility(captured.graph, found, ("fp32", "fp16", "e5m2", "int8"), keep={"norm*": ["fp32"]})
    column = {f: n for n, f in enumerate(allowed.formats)}
    assert allowed.allowed[names["conv.weight"], column["int8"]]
    assert "needs two" in allowed.reasons[names["conv.bias"], "int8"]
    assert "stores every entry as zero" in allowed.reasons[names["head.bias"], "fp16"]
    assert allowed.allowed[names["head.bias"], column["e5m2"]]  # scaled
    assert allowed.reasons[names["norm.weight"], "fp16"].endswith("is kept in fp32 by the keep-list 'norm*'")
    for (vertex, fmt), reason in allowed.reasons.items():
        assert not allowed.allowed[vertex, column[fmt]]
        assert captured.graph.vertices[vertex].name in reason
    free = [v.index for v in captured.graph.vertices if not v.fixed]
    assert (~allowed.allowed[free]).sum() == len(allowed.reasons)
    tight = admissibility(captured.graph, found, ("fp16",), headroom=1e6)
    assert "with headroom 1e+06" in next(iter(tight.reasons.values()))
    with pytest.raises(UsageError, match="matches no module"):
        admissibility(captured.graph, found, ("fp16",), keep={"nonsense": ["fp32"]})
    with pytest.raises(UsageError, match="headroom"):
        admissibility(captured.graph, found, ("fp16",), headroom=0.5)


def test_a_model_that_is_not_finite_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    nn.init.ones_(model[0].weight)
    captured = capture(model, [torch.ones(1, 2)])
    with pytest.raises(AnalysisIncomplete, match="not finite at input 'input'"):
        ranges(captured, [[torch.full((1, 2), float("inf"))]])
    with pytest.raises(AnalysisIncomplete, match=r"not finite at aten.linear.default 'linear' in 0"):
        ranges(captured, [[torch.full((1, 2), 3e38)]])


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "bert", "bart"])
def test_texts_become_calls_of_one_shape(name: str) -> None:
    model, tokenizer = pico(name), tinymodels.tokenizer(tinymodels.PICO[name].tokenizer)
    calls = text_inputs(model, tokenizer, tinymodels.SENTENCES, TextOptions(length=12, batch=3))
    assert len(calls) == 3  # ten sentences, three to a call
    captured = capture(model, calls[0])
    assert all(bool(torch.isfinite(run(captured, c)[0]).all()) for c in calls)
    kwargs = calls[2].kwargs or {}
    assert kwargs["input_ids"].shape == (3, 12)
    row = tokenizer(tinymodels.SENTENCES[7])["input_ids"][:12]
    assert kwargs["input_ids"][1, : len(row)].tolist()[:-1] == row[:-1]
    assert kwargs["attention_mask"].sum(1).tolist() == [
        min(12, len(tokenizer(s)["input_ids"])) for s in tinymodels.SENTENCES[6:9]
    ]
    with pytest.raises(UsageError, match="do not fill a batch"):
        text_inputs(model, tokenizer, tinymodels.SENTENCES[:2], TextOptions(batch=3))


def test_files_and_shapes_become_calls(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3)
    torch.save(tensor, tmp_path / "bare.pt")
    torch.save(
        {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.ones(1, 4)}, tmp_path / "named.pt"
    )
    np.save(tmp_path / "array.npy", tensor.numpy())
    assert torch.equal(file_inputs(tmp_path / "bare.pt").args[0], tensor)
    assert torch.equal(file_inputs(tmp_path / "array.npy").args[0], tensor)
    assert set(file_inputs(tmp_path / "named.pt").kwargs or {}) == {"input_ids", "attention_mask"}
    first, second = shape_inputs("2x3", n=2, seed=5)
    assert first.args[0].shape == (2, 3)
    assert not torch.equal(first.args[0], second.args[0])
    assert torch.equal(first.args[0], shape_inputs((2, 3), seed=5)[0].args[0])
    assert parse_shape("1,3,8") == (1, 3, 8)
    for wrong in ("3x", "axb", "", "0x2"):
        with pytest.raises(UsageError):
            shape_inputs(wrong)
