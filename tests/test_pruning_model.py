"""Pruning whole models: masks hold, squares commute, sliced models reload with stock classes, refusals are clear."""

import copy

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM

from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models.layout import find_stacks
from cohomcli.pruning.pattern import parse_pattern
from cohomcli.pruning.prune import PruneOptions, prune

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
FAMILIES = {
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 32},
    "llama": SMALL | {"num_key_value_heads": 2},
    "qwen2": SMALL | {"num_key_value_heads": 2},
    "bert": SMALL,
    "opt": SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 16},
}
del FAMILIES["opt"]["intermediate_size"]


def _model(family: str) -> nn.Module:
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    return auto.from_config(CONFIG_MAPPING[family](**FAMILIES[family])).eval().requires_grad_(False)


def _batches(count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 40, (3, 12), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]


def _prune(model: nn.Module, method: str, pattern: str, **options):
    stack = find_stacks(model).stacks[0]
    return prune(model, stack, _batches(), PruneOptions(method, parse_pattern(pattern), **options))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_pruned_and_drifts_least_under_chain(family: str) -> None:
    drifts = {}
    for method in ("random", "wanda", "chain"):
        model = _model(family)
        result = _prune(model, method, "0.5", shrink=0.3)
        assert result.sparsity == pytest.approx(0.5)
        assert len(result.maps) == {"gpt2": 8, "bert": 12, "opt": 12, "llama": 14, "qwen2": 14}[family]
        assert all(one.sparsity == pytest.approx(0.5) for one in result.maps)
        assert result.n_parameters[0] == result.n_parameters[1]
        drifts[method] = result.drift[-1]
    assert drifts["chain"] < drifts["wanda"] < drifts["random"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_sparsity_changes_nothing(family: str) -> None:
    model = _model(family)
    before = copy.deepcopy(model.state_dict())
    result = _prune(model, "wanda", "0")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert result.drift == (0.0, 0.0)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sliced_models_reload_with_stock_classes(family: str, tmp_path) -> None:
    model = _model(family)
    result = _prune(model, "chain", "mlp:0.25")
    assert result.n_parameters[1] < result.n_parameters[0]
    assert all(one.shape == (16, 32) for one in result.maps)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    ids = _batches(1)[0]["input_ids"]
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_writers_restore_the_dense_residual_state() -> None:
    # with room for the exact answer the square commutes: prune the readers away, and the writer puts back what it can
    plain, chained = _model("gpt2"), _model("gpt2")
    a = _prune(plain, "admm", "0.5", shrink=0.0)
    b = _prune(chained, "chain", "0.5", shrink=0.0)
    assert b.drift[-1] < a.drift[-1]


def test_grouped_query_attention_and_tied_embeddings_stay_as_they_are() -> None:
    model = _model("llama")
    embedding = model.get_input_embeddings().weight.clone()
    _prune(model, "wanda", "2:4")
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert model.config.num_key_value_heads == 2


def test_a_seed_gives_the_same_model_twice() -> None:
    models = [_model("gpt2") for _ in range(2)]
    results = [_prune(model, "random", "0.5", seed=7) for model in models]
    assert results[0] == results[1]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))
    assert not torch.equal(models[0].transformer.h[0].mlp.c_fc.weight, models[0].transformer.h[1].mlp.c_fc.weight)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="does not divide"):
        _prune(_model("gpt2"), "wanda", "3:7")
    with pytest.raises(UsageError, match="lambda"):
        PruneOptions("chain", parse_pattern("0.5"), shrink=2.0)
    with pytest.raises(UsageError, match="unknown pruning method"):
        PruneOptions("wander", parse_pattern("0.5"))
    with pytest.raises(UsageError, match="no channels"):
        PruneOptions("sparsegpt", parse_pattern("mlp:0.5"))
    model = _model("gpt2")
    with pytest.raises(UsageError, match="two calibration batches"):
        prune(model, find_stacks(model).stacks[0], _batches(1), PruneOptions("wanda", parse_pattern("0.5")))
    model.transformer.h[0].mlp.c_fc.weight[0, 0] = torch.inf
    with pytest.raises(AnalysisIncomplete, match="not finite"):
        _prune(model, "wanda", "0.5")
    torch.manual_seed(0)
    neox = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt_neox"](**SMALL)).eval()
    with pytest.raises(InputRefused, match="cannot be pruned yet"):
        _prune(neox, "wanda", "0.5")
