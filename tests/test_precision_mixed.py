"""Weights in planned dtypes: what the model computes with them, and the folder they are saved in, whole or refused."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import AutoTokenizer, BertModel, GPT2LMHeadModel

from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models.weights import fingerprint
from cohomcli.precision import mixed_folder
from cohomcli.precision.capture import capture
from cohomcli.precision.execute import uniform
from cohomcli.precision.explicit import apply
from cohomcli.precision.formats import get_format
from cohomcli.precision.mixed import with_planned_weights
from cohomcli.precision.mixed_folder import load_mixed, save_mixed
from cohomcli.precision.planfile import PlanFile, plan_file, plan_for, read_plan
from cohomcli.precision.rounding import choose_scale, round_to
from cohomcli.precision.spec import Plan
from tests import tinymodels

HALF, BYTES = ("fp32", "bf16", "fp16"), ("fp32", "bf16", "fp16", "e4m3", "e5m2", "int8")


def subject(name: str) -> tuple[Any, dict[str, Any]]:
    """A pico model with eager attention and a call of it."""
    model = tinymodels.build(name)
    model.set_attn_implementation("eager")
    ids = torch.randint(4, tinymodels.VOCAB, (1, 9), generator=torch.Generator().manual_seed(0))
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name in tinymodels.SEQ2SEQ:
        call["decoder_input_ids"] = ids[:, :7]
    return model, call


def planned(model: Any, call: dict[str, Any], formats: tuple[str, ...]) -> PlanFile:
    """Random formats everywhere."""
    captured, rng, chosen = capture(model, call, ["logits"]), np.random.default_rng(0), []
    for v in captured.graph.vertices:
        options = [f for f in formats if f != "int8" or (v.kind == "weight" and len(v.shape) > 1)]
        options = [f for f in options if f != "e4m3" or not v.mask_level]
        chosen.append("" if v.fixed else str(rng.choice(options)))
    return plan_file(captured, Plan(tuple(chosen)), 1e-2)


def rounded(value: torch.Tensor, fmt: str, axis: int) -> torch.Tensor:
    """The float32 numbers that a stored weight stands for."""
    scaled = get_format(fmt).n_bytes == 1 and fmt != "int8"
    return round_to(value, fmt, choose_scale(value, fmt) if scaled else None, axis)


def logits(model: Any, call: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**call).logits
    return found


@pytest.fixture(scope="module")
def gpt2() -> tuple[Any, dict[str, Any], PlanFile]:
    model, call = subject("gpt2")
    return model, call, planned(model, call, BYTES)


@pytest.fixture
def folder(gpt2: tuple[Any, dict[str, Any], PlanFile], tmp_path: Path) -> Path:
    return save_mixed(gpt2[0], gpt2[2], tmp_path / "mixed", tinymodels.tokenizer("causal"))


# --- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formats", [HALF, BYTES], ids=["half", "bytes"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "bart"])
def test_logits_before_and_after_the_folder_are_those_of_rounded_weights(
    tmp_path: Path, name: str, formats: tuple[str, ...]
) -> None:
    model, call = subject(name)
    plan = planned(model, call, formats)
    before = fingerprint(model)
    held: Any = with_planned_weights(model, plan)
    loaded: Any = load_mixed(save_mixed(model, plan, tmp_path / "out"))
    assert fingerprint(model) == before
    plain = copy.deepcopy(model)
    tensors = dict(plain.named_parameters(remove_duplicate=False)) | dict(plain.named_buffers())
    with torch.no_grad():
        for weight, entry in plan.weights.items():
            tensors[weight].copy_(rounded(tensors[weight].detach().clone(), entry.format, entry.axis))
    wanted = logits(plain, call)
    assert torch.equal(logits(held, call), wanted)
    assert torch.equal(logits(loaded, call), wanted)
    longer = {key: value.repeat(2, 3) for key, value in call.items()}  # weights know no shape of inputs
    assert torch.equal(logits(held, longer), logits(loaded, longer))


def test_memory_shrinks_and_ties_stay(gpt2: tuple[Any, dict[str, Any], PlanFile]) -> None:
    model, _, plan = gpt2
    held: Any = with_planned_weights(model, plan)
    expected = 0
    for name, entry in plan.weights.items():
        expected += model.get_parameter(name).numel() * get_format(entry.format).n_bytes
    assert sum(p.nbytes for p in held.parameters()) == expected
    wte, head = (m.parametrizations.weight.original for m in (held.transformer.wte, held.lm_head))
    assert wte is head
    assert held.lm_head.weight.dtype == torch.float32


def test_the_whole_plan_runs_on_the_loaded_weights(tmp_path: Path) -> None:
    """Rounding is idempotent: the plan applied to the read weights gives the bits of the plan applied to the model."""
    model, call = subject("llama")
    plan = planned(model, call, HALF)
    loaded: Any = load_mixed(save_mixed(model, plan, tmp_path / "out"))
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(loaded.get_submodule(name.rpartition(".")[0]).weight)
    first, second = (capture(m, call, ["logits"]) for m in (model, plain))
    found = read_plan(tmp_path / "out" / "plan.json")
    wanted = apply(model, plan_for(plan, first.graph), first)(**call).logits
    assert torch.equal(apply(plain, plan_for(found, second.graph), second)(**call).logits, wanted)


def test_a_model_without_its_pooler_comes_back_without_it(tmp_path: Path) -> None:
    """The model door takes off a pooler that a checkpoint lacks."""
    model, call = subject("bert")
    encoder = BertModel(model.config).eval()
    encoder.set_attn_implementation("eager")
    encoder.pooler = None
    captured = capture(encoder, call, ["last_hidden_state"])
    plan = plan_file(captured, uniform(captured, "bf16"))
    loaded: Any = load_mixed(save_mixed(encoder, plan, tmp_path / "out"))
    assert loaded.pooler is None
    with torch.no_grad():
        wanted = with_planned_weights(encoder, plan)(**call).last_hidden_state
        assert torch.equal(loaded(**call).last_hidden_state, wanted)


# --- what is in the folder --------------------------------------------------------------------------------------------


def test_every_tensor_has_its_planned_dtype(folder: Path) -> None:
    plan = read_plan(folder / "plan.json")
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    for name, entry in plan.weights.items():
        fmt = get_format(entry.format)
        assert stored[name].dtype == fmt.torch_dtype
        assert (f"{name}_scale" in stored) == (fmt.n_bytes == 1)
    assert "lm_head.weight" not in stored
    assert plan.weights["transformer.wte.weight"].tied == ("lm_head.weight",)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["quantization_config"]["quant_method"] == "cohom"
    assert "_name_or_path" not in config
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("Hell is empty.").input_ids == tinymodels.tokenizer("causal")("Hell is empty.").input_ids
    assert {oct(file.stat().st_mode & 0o444) for file in folder.iterdir()} == {"0o444"}


def test_unscaled_folders_can_be_read_by_transformers(tmp_path: Path) -> None:
    model, call = subject("gpt2")
    out = save_mixed(model, planned(model, call, HALF), tmp_path / "out")
    loaded: Any = load_mixed(out)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32, torch.bfloat16, torch.float16}
    theirs = GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    assert torch.equal(logits(theirs, call), logits(loaded, call))
    assert "quantization_config" not in json.loads((out / "config.json").read_text(encoding="utf-8"))


def test_a_folder_is_planned_as_its_model_is(tmp_path: Path, gpt2: tuple[Any, dict[str, Any], PlanFile]) -> None:
    model, _, plan = gpt2
    model.save_pretrained(tmp_path / "model")
    tinymodels.tokenizer("causal").save_pretrained(tmp_path / "model")
    save_mixed(str(tmp_path / "model"), plan, tmp_path / "a")
    save_mixed(model, plan, tmp_path / "b")
    names = {file.name for file in (tmp_path / "a").iterdir()}
    assert names >= {"config.json", "plan.json", "mixed.json", "model.safetensors", "tokenizer.json"}
    for name in ("model.safetensors", "plan.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# --- refusals ---------------------------------------------------------------------------------------------------------


def reseal(folder: Path) -> None:
    """Make mixed.json agree with what the other files became."""
    sums = {
        n: hashlib.sha256((folder / n).read_bytes()).hexdigest()
        for n in ("config.json", "plan.json", "model.safetensors")
    }
    (folder / "mixed.json").write_text(json.dumps({"schema": "cohom.mixed/1", "sha256": sums}), encoding="utf-8")


def refused(folder: Path) -> str:
    with pytest.raises(InputRefused) as caught:
        load_mixed(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "plan.json", "model.safetensors", "mixed.json"])
def test_damage_anywhere_is_one_line(folder: Path, name: str) -> None:
    file = folder / name
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    refused(folder)
    file.write_bytes(whole[:middle])
    refused(folder)
    file.unlink()
    assert name in refused(folder)
    file.write_bytes(whole)
    load_mixed(folder)


def test_contradictions_are_refused_though_the_sums_agree(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    scale = next(name for name in tensors if name.endswith("_scale"))
    scaled = scale.removesuffix("_scale")
    changes: list[tuple[dict[str, Any], str]] = [
        ({scale: None}, f"the scale of '{scaled}'"),
        ({scale: torch.ones(7)}, "missing or misshapen"),
        ({scaled: tensors[scaled].float()}, "is torch.float32, its plan says"),
        ({scaled: None}, "is missing, its plan says"),
        ({"extra.weight": torch.ones(2)}, "1 left over"),
        ({"transformer.ln_f.bias": tensors["transformer.ln_f.bias"][:3].clone()}, "of another shape"),
    ]
    for change, why in changes:
        changed = {name: value for name, value in (tensors | change).items() if value is not None}
        safetensors.torch.save_file(changed, file, metadata={"format": "pt"})
        reseal(folder)
        assert why in refused(folder)
    file.write_bytes(b"not safetensors at all")
    reseal(folder)
    refused(folder)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("architectures", ["os"], "no transformers model class"),
        ("architectures", ["GPT2Config"], "no transformers model class"),
        ("architectures", ["__builtins__"], "no transformers model class"),
        ("architectures", ["BertForMaskedLM"], "do not fit its config.json|no model can be made"),
        ("n_layer", 5, "missing"),
        ("n_embd", "wide", "not valid|no model can be made"),
        ("model_type", "nonsense", "unknown architecture"),
        ("auto_map", {"AutoModelForCausalLM": "evil.Model"}, None),
    ],
)
def test_a_configuration_cannot_do_more_than_describe(folder: Path, key: str, value: Any, why: str | None) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, key: value}), encoding="utf-8")
    reseal(folder)
    if why is None:  # a known architecture needs no code of the folder's
        assert type(load_mixed(folder)) is GPT2LMHeadModel
        return
    with pytest.raises(InputRefused, match=why):
        load_mixed(folder)


def test_nothing_half_written_is_left(
    gpt2: tuple[Any, dict[str, Any], PlanFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, plan = gpt2
    out = tmp_path / "out"
    save_mixed(model, plan, out)
    with pytest.raises(UsageError, match="exists; choose a new folder"):
        save_mixed(model, plan, out)
    with pytest.raises(UsageError, match="cannot write"):
        save_mixed(model, plan, out / "config.json" / "below")
    with pytest.raises(UsageError, match="is no transformers model"):
        save_mixed(nn.Linear(2, 2), plan, tmp_path / "new")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mixed_folder, "_save_tensors", full)
    with pytest.raises(AnalysisIncomplete, match="no space left"):
        save_mixed(model, plan, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_plan_for_another_model_is_refused(gpt2: tuple[Any, dict[str, Any], PlanFile], tmp_path: Path) -> None:
    model, _ = subject("llama")
    with pytest.raises(UsageError, match="which the model has not; use the plan's own model"):
        save_mixed(model, gpt2[2], tmp_path / "out")
    with pytest.raises(UsageError, match=r"give the float32 model: model.float\(\)"):
        with_planned_weights(copy.deepcopy(gpt2[0]).half(), gpt2[2])
