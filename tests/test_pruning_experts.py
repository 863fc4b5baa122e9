"""Experts of a mixture go whole: the router chooses among the others, and stock classes load what is left."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import silu
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cohomcli.__main__ import main
from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.layout import find_stacks, first_tensor
from cohomcli.pruning.experts import mixture_of
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.pattern import parse_pattern
from cohomcli.pruning.prune import prune
from tests.tinymodels import tokenizer

SMALL = {
    "vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "num_experts_per_tok": 2, "max_position_embeddings": 64, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
COUNT = 5
FAMILIES = {
    "mixtral": {"num_local_experts": COUNT},
    "qwen2_moe": {"num_experts": COUNT, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": COUNT, "moe_intermediate_size": 24, "mlp_only_layers": [0]},
    "olmoe": {"num_experts": COUNT},
    "flex_olmo": {"num_experts": COUNT},
    "granitemoe": {"num_local_experts": COUNT},
    "phimoe": {"num_local_experts": COUNT},
    "gpt_oss": {"num_local_experts": COUNT},
}


def _model(family: str = "mixtral", **changes) -> nn.Module:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SMALL | FAMILIES[family] | changes)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.dim() > 1):
            weight.mul_(8)  # experts that differ
    return model


def _batches(count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 300, (3, 12), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]


def _prune(model: nn.Module, method: str, pattern: str, **options):
    return prune(
        model, find_stacks(model).stacks[0], _batches(), PruneOptions(method, parse_pattern(pattern), **options)
    )


def _inputs_of(module: nn.Module, model: nn.Module) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, -2)))
    for batch in _batches():
        model(**batch)
    handle.remove()
    return seen


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_stock_class_loads_what_is_left_with_equal_logits(family: str, tmp_path: Path) -> None:
    model = _model(family)
    mixtures = len(find_stacks(model).stacks[0].blocks) - len(FAMILIES[family].get("mlp_only_layers", []))
    result = _prune(model, "chain", "experts:0.4")
    assert [one.shape[0] for one in result.maps] == [COUNT] * mixtures
    assert {one.sparsity for one in result.maps} == {0.4}
    experts = sum(one.shape[0] * one.shape[1] * 0.4 for one in result.maps)
    routers = sum(p.numel() for name, p in model.named_parameters() if ".gate." in name or ".router." in name) * 2 / 3
    shared = 16 * mixtures * 2 / 3 if family == "qwen2_moe" else 0  # shared_expert_gate is no router
    assert result.n_parameters[0] - result.n_parameters[1] == pytest.approx(experts + routers, abs=shared + 1)
    assert 0 < result.drift[-1] < 1.5
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = _batches(1)[0]["input_ids"]
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_the_expert_that_goes_is_the_one_whose_absence_costs_least() -> None:
    dense, costs = _model(num_hidden_layers=1), []
    for gone in range(COUNT):
        model = _model(num_hidden_layers=1)
        mixture_of(model.model.layers[0], "mlp").keep([one for one in range(COUNT) if one != gone])
        costs.append(sum(_distance(model, dense, batch) for batch in _batches()))
    pruned = _model(num_hidden_layers=1)
    _prune(pruned, "chain", "experts:0.2")
    best = min(range(COUNT), key=costs.__getitem__)
    kept = [one for one in range(COUNT) if one != best]
    assert torch.equal(pruned.model.layers[0].mlp.gate.weight, dense.model.layers[0].mlp.gate.weight[kept])
    assert torch.equal(pruned.model.layers[0].mlp.experts.down_proj, dense.model.layers[0].mlp.experts.down_proj[kept])


def _distance(model: nn.Module, dense: nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """|h - h'|^2 behind the first block."""
    states = []
    for one in (model, dense):
        handle = one.model.layers[0].register_forward_hook(
            lambda module, args, output: states.append(first_tensor(output))
        )
        one(**batch)
        handle.remove()
    return float((states[0] - states[1]).double().pow(2).sum())


def test_reap_is_the_mean_of_gate_times_norm_where_an_expert_is_chosen() -> None:
    dense = _model(num_hidden_layers=1)
    mlp = dense.model.layers[0].mlp
    sums, counts = [0.0] * COUNT, [0] * COUNT
    for x in _inputs_of(mlp, dense):
        shares = (x @ mlp.gate.weight.T).softmax(-1)
        for token, share in zip(x, shares, strict=True):
            chosen = share.argsort(descending=True)[:2].tolist()
            for expert in chosen:
                first, second = (mlp.experts.gate_up_proj[expert] @ token).chunk(2)
                added = mlp.experts.down_proj[expert] @ (silu(first) * second)
                sums[expert] += float(share[expert] / share[chosen].sum() * added.norm())
                counts[expert] += 1
    worth = [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
    pruned = _model(num_hidden_layers=1)
    _prune(pruned, "reap", "experts:0.4")
    kept = sorted(sorted(range(COUNT), key=worth.__getitem__)[2:])
    assert torch.equal(pruned.model.layers[0].mlp.gate.weight, mlp.gate.weight[kept])


def test_measuring_again_after_every_loss_beats_chance() -> None:
    drifts = {method: _prune(_model(), method, "experts:0.6").drift for method in ("chain", "magnitude")}
    drawn = [_prune(_model(), "random", "experts:0.6", seed=seed).drift[0] for seed in range(6)]
    assert drifts["chain"][0] <= min(drawn)
    assert drifts["chain"][-1] < drifts["magnitude"][-1]


def test_nothing_goes_at_zero_and_heads_can_go_beside_experts(tmp_path: Path) -> None:
    model = _model()
    before = copy.deepcopy(model.state_dict())
    assert _prune(model, "chain", "experts:0").drift == (0.0, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    _prune(model, "chain", "heads:0.5")
    model.save_pretrained(tmp_path)
    ids = _batches(1)[0]["input_ids"]
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="less than one"):
        _prune(_model(), "chain", "experts:0.1")
    with pytest.raises(UsageError, match="leaves 1 experts"):
        _prune(_model(), "chain", "experts:0.8")
    with pytest.raises(UsageError, match="does not prune"):
        _prune(_model(), "wanda", "experts:0.4")
    with pytest.raises(InputRefused, match=r"which 0\.5 does not prune"):
        _prune(_model(), "wanda", "0.5")
    plain = {key: value for key, value in SMALL.items() if key != "num_experts_per_tok"}
    llama = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**plain)).eval()
    with pytest.raises(InputRefused, match="no experts"):
        _prune(llama, "chain", "experts:0.4")
    corrected = nn.Linear(4, 3, bias=False)
    corrected.top_k = 2
    corrected.register_buffer("e_score_correction_bias", torch.zeros(3))  # as DeepSeek V3 has it
    experts = nn.Module()
    experts.down_proj = nn.Parameter(torch.zeros(3, 4, 2))
    block = nn.Module()
    block.mlp = nn.Module()
    block.mlp.gate, block.mlp.experts = corrected, experts
    with pytest.raises(InputRefused, match="cannot be pruned yet"):
        mixture_of(block, "mlp")


def test_the_command_prunes_a_mixture(capsys, tmp_path: Path) -> None:
    _model(num_hidden_layers=2).save_pretrained(tmp_path / "dense")
    tokenizer("causal").save_pretrained(tmp_path / "dense")
    capsys.readouterr()
    code = main([
        "prune", "-m", str(tmp_path / "dense"), "--pattern", "experts:0.4", "--calibration-tokens", "1024",
        "--eval-tokens", "512", "--block-size", "32", "--no-html", "--no-plots", "--verify", "--json", "--quiet",
        "--output-dir", str(tmp_path / "out"),
    ])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    document = json.loads(captured.out)
    config = SimpleNamespace(**json.loads((Path(document["run"]) / "model" / "config.json").read_text()))
    assert config.num_local_experts == 3
    assert any("bit for bit" in note for note in document["notes"])
    report = (Path(document["run"]) / "report.md").read_text()
    assert "every token still asks for as many experts" in report
