"""The explicit-cast model: bit for bit the emulation, in the bytes that the plan says; plans by name and back."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cohomcli.errors import InputRefused, UsageError
from cohomcli.precision.capture import Captured, Example, capture
from cohomcli.precision.costs import bytes_of
from cohomcli.precision.execute import Emulator, run, uniform
from cohomcli.precision.explicit import apply
from cohomcli.precision.formats import get_format
from cohomcli.precision.inputs import shape_inputs
from cohomcli.precision.planfile import dump_plan, identity, parse_plan, plan_file, plan_for, read_plan
from cohomcli.precision.spec import Plan
from tests import tinymodels

FORMAT_SETS = [
    ("fp32", "bf16", "fp16"),
    ("fp32", "bf16", "fp16", "e4m3", "e5m2", "int8"),
    ("fp64", "fp32", "bf16", "e5m2"),
]


class Several(nn.Module):
    """Ops that return several results, slices, a tied weight under two names, and a bare tensor out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.embed, self.head = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.linspace(-1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, (h, _) = self.lstm(x)
        values, _ = torch.topk(y + self.shift, 4, dim=-1)
        first, second = values.split(2, dim=-1)
        z = self.embed(x) * self.head(x.flip(1)) + h.transpose(0, 1)
        return torch.cat([first - second, z[..., :2]], dim=-1)


class Pair(nn.Module):
    """Two results in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.norm(self.conv(x)).relu()
        return y.mean((2, 3)), y.flatten(1)[:, ::5]


def subject(name: str) -> tuple[Any, Example]:
    if name == "several":
        return Several().eval(), shape_inputs((2, 5, 6))[0]
    if name == "pair":
        return Pair().eval(), shape_inputs((2, 3, 8, 8))[0]
    model = tinymodels.build(name)
    model.set_attn_implementation("eager")
    ids = torch.randint(4, tinymodels.VOCAB, (1, 9), generator=torch.Generator().manual_seed(0))
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name in tinymodels.SEQ2SEQ:
        call["decoder_input_ids"] = ids[:, :7]
    return model, Example((), call if name in tinymodels.MASKED else {**call, "use_cache": False})


def random_plan(captured: Captured, formats: tuple[str, ...], seed: int) -> Plan:
    """Any format anywhere, but int8 only for matrices, and no mask in a format without infinity."""
    rng, chosen = np.random.default_rng(seed), []
    for v in captured.graph.vertices:
        options = [f for f in formats if f != "int8" or (v.kind == "weight" and len(v.shape) > 1)]
        options = [f for f in options if f != "e4m3" or not v.mask_level]
        chosen.append("" if v.fixed else str(rng.choice(options)))
    return Plan(tuple(chosen))


@pytest.fixture(scope="module", params=["gpt2", "bert", "gemma2", "t5", "several", "pair"])
def case(request: pytest.FixtureRequest) -> tuple[Any, Example, Captured]:
    model, example = subject(request.param)
    return model, example, capture(model, example)


def flat(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result.values()) if isinstance(result, dict) else list(result)


# --- the model that runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formats", FORMAT_SETS, ids=["half", "bytes", "double"])
def test_applied_is_emulated_bit_for_bit(case: tuple[Any, Example, Captured], formats: tuple[str, ...]) -> None:
    model, example, captured = case
    emulate = Emulator(captured)
    for seed in range(3):
        plan = random_plan(captured, formats, seed)
        wanted = emulate(plan, example).outputs
        got = flat(apply(model, plan, captured)(*example.args, **(example.kwargs or {})))
        for y, w in zip(got, wanted, strict=True):
            assert y.dtype == w.dtype
            assert torch.equal(y.nan_to_num(9e9), w.nan_to_num(9e9))
            assert bool(torch.isfinite(w).any())


def test_uniform_float32_is_the_module(case: tuple[Any, Example, Captured]) -> None:
    model, example, captured = case
    applied = apply(model, uniform(captured, "fp32"), captured)
    for y, w in zip(flat(applied(*example.args, **(example.kwargs or {}))), run(captured, example), strict=True):
        assert torch.equal(y, w)


def test_a_plan_by_hand() -> None:
    """(x W^T + b) with W in fp8, b in fp16 and the result in bf16, against PyTorch's own casts."""
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    x = torch.linspace(-2, 2, 8).view(2, 4)
    captured = capture(model, (x,))
    formats = {"0.weight": "e5m2", "0.bias": "fp16", "linear": "bf16"}
    applied = apply(model, Plan(tuple(formats.get(v.name, "") for v in captured.graph.vertices)), captured)
    scale = 2.0 ** np.ceil(np.log2(float(model[0].weight.detach().abs().max()) / 57344.0))
    weight = (model[0].weight / scale).to(torch.float8_e5m2).float() * scale
    by_hand = torch.nn.functional.linear(x, weight, model[0].bias.half().float()).bfloat16().float()
    assert torch.equal(applied(x), by_hand)
    state = applied.state_dict()
    assert {name: value.dtype for name, value in state.items()} == {
        "0.weight": torch.float8_e5m2, "0.weight_scale": torch.float32, "0.bias": torch.float16,
    }  # fmt: skip
    assert float(state["0.weight_scale"]) == scale


def test_weights_take_their_planned_bytes_and_ties_stay(case: tuple[Any, Example, Captured]) -> None:
    model, _, captured = case
    applied = apply(model, uniform(captured, "fp16"), captured)
    known = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for name, value in applied.named_parameters(remove_duplicate=False):
        assert value.shape == known[name].shape
        real = known[name].is_floating_point()
        assert value.dtype == (torch.float16 if real and name not in _fixed(captured) else known[name].dtype)
    counted = bytes_of(captured.graph, uniform(captured, "fp16")).weights
    constants = sum(h.tensor.nbytes for h in captured.program.held if h.constant)
    assert sum(p.nbytes for p in applied.parameters()) == counted - constants


def _fixed(captured: Captured) -> set[str]:
    return {v.name for v in captured.graph.vertices if v.kind == "weight" and v.fixed}


def test_a_tied_weight_is_one_tensor_under_all_captured_names() -> None:
    model, example = subject("several")
    captured = capture(model, example)
    plan = random_plan(captured, ("bf16", "int8"), 0)
    applied = apply(model, plan, captured)
    names = [name for name in applied.state_dict() if name in ("embed.weight", "head.weight")]
    assert len({applied.get_parameter(name).data_ptr() for name in names}) == 1
    elements = sum(p.numel() for p in applied.parameters())
    assert elements == sum(p.numel() for p in model.parameters()) + 8  # the buffer is a weight too


def test_the_float32_weights_are_let_go() -> None:
    model, example = subject("gpt2")
    captured = capture(model, example)
    applied = apply(model, uniform(captured, "bf16"), captured)
    gone = weakref.ref(model.transformer.h[0].attn.c_attn.weight)
    kwargs = dict(example.kwargs or {})
    del model, captured, example
    gc.collect()
    assert gone() is None
    assert applied(**kwargs).logits.shape == (1, 9, tinymodels.VOCAB)


def test_results_come_back_as_the_model_returns_them() -> None:
    model, example = subject("bert")
    captured = capture(model, example)
    out = apply(model, uniform(captured, "fp32"), captured)(**(example.kwargs or {}))
    assert torch.equal(out.logits, out["logits"])
    assert list(out) == ["logits"]
    with pytest.raises(AttributeError, match="no output 'loss'; there are logits"):
        _ = out.loss
    for name, kind in (("several", torch.Tensor), ("pair", tuple)):
        module, call = subject(name)
        held = capture(module, call)
        assert isinstance(apply(module, uniform(held, "bf16"), held)(*call.args), kind)


def test_what_does_not_fit_is_refused() -> None:
    model, example = subject("pair")
    captured = capture(model, example)
    applied = apply(model, uniform(captured, "fp16"), captured)
    with pytest.raises(UsageError, match=r"input 'x' is \(1, 3, 8, 8\) .* the model was captured with \(2, 3, 8, 8\)"):
        applied(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match="the plan has 1 formats"):
        apply(model, Plan(("fp16",)), captured)
    with pytest.raises(UsageError, match="which the model has not in that shape; capture this very model"):
        apply(nn.Linear(2, 2), uniform(captured, "fp16"), captured)
    with pytest.raises(UsageError, match="int8 is for weights of two dimensions or more"):
        apply(model, uniform(captured, "int8"), captured)
    with pytest.raises(UsageError, match="unknown format 'fp12'"):
        apply(model, uniform(captured, "fp12"), captured)


# --- plan.json --------------------------------------------------------------------------------------------------------


def test_a_plan_survives_its_file(case: tuple[Any, Example, Captured], tmp_path: Path) -> None:
    _, _, captured = case
    plan = random_plan(captured, FORMAT_SETS[1], 5)
    written = plan_file(captured, plan, 1e-3, "max-abs")
    (tmp_path / "plan.json").write_text(dump_plan(written), encoding="utf-8")
    found = read_plan(tmp_path / "plan.json")
    assert found == written
    assert plan_for(found, captured.graph) == plan
    content = json.loads(dump_plan(written))
    assert content["schema"] == "cohom.plan/1"
    assert [v["format"] for v in content["vertices"]] == list(plan.formats)
    by_name = {v.name: plan.formats[v.index] for v in captured.graph.vertices if v.kind == "weight" and not v.fixed}
    assert {name: w["format"] for name, w in content["weights"].items()} == by_name
    assert all(w["dtype"] == get_format(w["format"]).dtype for w in content["weights"].values())


def test_a_plan_fits_other_lengths_and_no_other_model() -> None:
    model, example = subject("gpt2")
    captured = capture(model, example)
    longer = {k: v.repeat(1, 2) if isinstance(v, torch.Tensor) else v for k, v in (example.kwargs or {}).items()}
    written = plan_file(captured, uniform(captured, "fp16"))
    again = capture(model, longer)
    assert identity(again.graph) == identity(captured.graph)
    logits = apply(model, plan_for(written, again.graph), again)(**longer).logits
    assert logits.shape == (1, 18, tinymodels.VOCAB)
    deeper = tinymodels.build("gpt2", n_layer=4)
    deeper.set_attn_implementation("eager")
    with pytest.raises(UsageError, match=r"another graph: \d+ ops in the plan, \d+ in the model"):
        plan_for(written, capture(deeper, example).graph)
    wider = tinymodels.build("gpt2", n_embd=32)
    wider.set_attn_implementation("eager")
    with pytest.raises(UsageError, match="as many ops and weights, but others"):
        plan_for(written, capture(wider, example).graph)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"cohom.plan/1"', '"cohom.plan/2"', "its schema is 'cohom.plan/2'"),
        ('"format": "bf16"', '"format": "fp12"', "unknown format 'fp12'"),
        ('"format": "bf16"', '"format": ["bf16"]', "no plan"),
        ('"epsilon": 0.01', '"epsilon": NaN', "not valid JSON|NaN is no number"),
        ('"epsilon": 0.01', '"epsilon": -1', "epsilon is -1"),
        ('"epsilon": 0.01', '"epsilon": 0.01, "epsilon": 0.02', "a key is repeated"),
        ('"norm": "rel-l2"', '"norm": "l7"', "unknown norm 'l7'"),
        ('"semantics": "store"', '"semantics": "other"', "its semantics is 'other'"),
        ('"ops": 1', '"ops": 2', "lists other vertices"),
        ('"ops": 1', '"extra": 1', "no plan"),
        ('"kind": "op"', '"kind": "opera"', "is no vertex"),
        ('"dtype": "float16"', '"dtype": "float32"', "is fp16 and 'float32' at once"),
        ('"vertices": [', '"vertices": {', "not valid JSON"),
        ('"weights": {', '"weight": {', "no plan"),
    ],
)
def test_a_damaged_plan_is_one_line(tmp_path: Path, old: str, new: str, why: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    captured = capture(model, (torch.ones(2, 4),))
    formats = {"0.weight": "fp16", "0.bias": "fp32", "linear": "bf16"}
    text = dump_plan(plan_file(captured, Plan(tuple(formats.get(v.name, "") for v in captured.graph.vertices)), 0.01))
    assert old in text
    file = tmp_path / "plan.json"
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputRefused, match=why) as caught:
        read_plan(file)
    assert "\n" not in str(caught.value)


def test_a_missing_or_foreign_plan_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="cannot read"):
        read_plan(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputRefused, match="not UTF-8"):
        read_plan(tmp_path / "binary.json")
    for text in ("", "[]", "[" * 100_000, '{"schema": 1}', "null"):
        with pytest.raises(InputRefused):
            parse_plan(text)
