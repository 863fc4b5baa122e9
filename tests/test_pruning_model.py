"""Pruning whole models: masks hold, squares commute, sliced models reload with stock classes, refusals are clear."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM

from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models.layout import find_stacks, first_tensor
from cohomcli.nn import CohomologicalTransformer
from cohomcli.pruning.allocation import SPREAD, spread
from cohomcli.pruning.context import Context
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.parts import anatomy_of, at
from cohomcli.pruning.pattern import parse_pattern
from cohomcli.pruning.prune import prune
from cohomcli.pruning.shelf import Shelf
from cohomcli.pruning.solve import METHODS
from cohomcli.pruning.stream import PRUNED, Flow

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
FAMILIES = {
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 32},
    "llama": SMALL | {"num_key_value_heads": 2},
    "qwen2": SMALL | {"num_key_value_heads": 2},
    "bert": SMALL,
    "gemma2": SMALL | {"num_key_value_heads": 2, "head_dim": 4, "sliding_window": 6},
    "cohomological_transformer": {"vocab_size": 40, "dim": 16, "sequence_dim": 8, "exact": "hard", "causal": True},
    "opt": SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 16},
}
del FAMILIES["opt"]["intermediate_size"]


def _model(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "cohomological_transformer":
        return CohomologicalTransformer(**FAMILIES[family]).eval().requires_grad_(False)
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
        n_layer = len(find_stacks(model).stacks[0].blocks)
        assert len(result.maps) == n_layer * {"gpt2": 4, "bert": 6, "opt": 6, "cohomological_transformer": 4}.get(
            family, 7
        )
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
    assert max(result.drift) < 1e-12


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sliced_models_reload_with_stock_classes(family: str, tmp_path) -> None:
    model = _model(family)
    result = _prune(model, "chain", "mlp:0.25")
    assert result.n_parameters[1] < result.n_parameters[0]
    assert len({one.shape for one in result.maps}) == 1
    _assert_reloads(model, tmp_path)


def _assert_reloads(model: nn.Module, folder) -> nn.Module:
    model.save_pretrained(folder)
    again, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = _batches(1)[0]["input_ids"]
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, again.eval()(input_ids=ids).logits)
    return again


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("method", ["chain", "wanda"])
def test_heads_go_by_key_value_group_and_the_result_reloads(family: str, method: str, tmp_path) -> None:
    model = _model(family)
    result = _prune(model, method, "heads:0.5")
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 4)
    assert all(one.sparsity == pytest.approx(0.5) for one in result.maps)
    again = _assert_reloads(model, tmp_path)
    assert again.model.layers[0].self_attn.q_proj.weight.shape == (8, 16)
    assert again.model.layers[0].self_attn.k_proj.weight.shape == (4, 16)


def test_the_group_of_heads_that_writes_nothing_goes_at_no_cost() -> None:
    model = _model("llama")
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.o_proj.weight[:, 8 * index : 8 * index + 8] = 0  # another group in each block
    ids = _batches(1)[0]["input_ids"]
    before = model(input_ids=ids).logits
    _prune(model, "wanda", "heads:0.5")
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen2", "gemma2"])
def test_blocks_go_and_the_result_reloads(family: str, tmp_path) -> None:
    changes = {"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4}
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    model = auto.from_config(CONFIG_MAPPING[family](**FAMILIES[family] | changes)).eval().requires_grad_(False)
    result = _prune(model, "chain", "blocks:0.5")
    assert len(result.blocks_gone) == 2
    assert 0 not in result.blocks_gone
    assert (len(result.drift), result.sparsity) == (2, 0.5)
    again = _assert_reloads(model, tmp_path)
    assert again.config.num_hidden_layers == 2


def test_the_block_that_changes_nothing_is_the_one_that_goes() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["llama"](**FAMILIES["llama"] | {"num_hidden_layers": 4}))
    model = model.eval().requires_grad_(False)
    idle = model.model.layers[2]
    idle.self_attn.o_proj.weight.zero_()
    idle.mlp.down_proj.weight.zero_()
    ids = _batches(1)[0]["input_ids"]
    before = model(input_ids=ids).logits
    result = _prune(model, "influence", "blocks:0.25")
    assert result.blocks_gone == (2,)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)


def test_fitting_before_the_gap_comes_nearer_to_the_dense_states() -> None:
    drift = {}
    for method in ("influence", "chain"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt2"](**FAMILIES["gpt2"] | {"n_layer": 4})).eval()
        drift[method] = _prune(model.requires_grad_(False), method, "blocks:0.5").drift[-1]
    assert drift["chain"] < drift["influence"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_pruned_stream_is_what_the_pruned_model_computes(family: str, tmp_path) -> None:
    # attention is not run again behind itself, and a block's end is added up: both must be what the model does
    model = _model(family)
    stack = find_stacks(model).stacks[0]
    flow = Flow(model, stack, _batches(), Shelf(tmp_path))
    context = Context(model, flow, PruneOptions("wanda", parse_pattern("0.5")))
    for index, block in enumerate(stack.blocks):
        flow.enter(index, block, anatomy_of(block))
        for group in anatomy_of(block).groups:
            context.moments(block, group, METHODS.get("wanda"))
            for path in group.paths:
                at(block, path).weight.mul_(0.9)
        flow.leave()
    outputs = []
    handle = stack.blocks[-1].register_forward_hook(lambda *given: outputs.append(first_tensor(given[2])))
    with torch.inference_mode():
        model(**_batches()[1])
    handle.remove()
    torch.testing.assert_close(flow.hidden(PRUNED, 1), outputs[0], rtol=1e-4, atol=1e-5)


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
    with pytest.raises(UsageError, match="does not prune"):
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
    with pytest.raises(InputRefused, match="size of a head"):
        _prune(_model("gpt2"), "chain", "heads:0.5")
    with pytest.raises(UsageError, match="less than one"):
        _prune(_model("llama"), "chain", "heads:0.25")
    with pytest.raises(InputRefused, match="no biases"):
        _prune(_model("qwen2"), "flap", "mlp:0.25")


def test_outliers_keep_more_of_their_block() -> None:
    model = _model("llama")
    quiet, loud = _prune(model, "wanda", "0.5", allocation="owl"), _model("llama")
    assert quiet.sparsity == pytest.approx(0.5, abs=0.03)
    with torch.no_grad():
        loud.model.layers[1].mlp.up_proj.weight[::4] *= 30  # scores far above the mean
    result = _prune(loud, "wanda", "0.5", allocation="owl")
    first, second = (
        [one.sparsity for one in result.maps if one.name.startswith(f"layer_{index}.")] for index in (0, 1)
    )
    assert max(second) < min(first)
    with pytest.raises(UsageError, match="owl"):
        PruneOptions("wanda", parse_pattern("2:4"), allocation="owl")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 0.99))
def test_allocations_average_to_what_was_asked(shares: list[float], sparsity: float) -> None:
    found = spread(shares, sparsity)
    assert sum(found) / len(found) == pytest.approx(sparsity, abs=1e-9)
    assert all(-1e-12 <= one < 1 and abs(one - sparsity) <= 2 * SPREAD for one in found)
    order = sorted(range(len(shares)), key=shares.__getitem__)
    assert all(found[a] >= found[b] - 1e-12 for a, b in pairwise(order))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_flap_keeps_the_mean_of_what_went_in_a_bias_and_reloads(family: str, tmp_path) -> None:
    flap, wanda = _model(family), _model(family)
    drifts = [_prune(model, method, "mlp:0.25").drift[-1] for model, method in ((flap, "flap"), (wanda, "wanda"))]
    assert all(drift > 0 for drift in drifts)
    assert flap.config.mlp_bias if family == "llama" else True
    _assert_reloads(flap, tmp_path)


def test_a_channel_that_never_changes_goes_into_flaps_bias_without_a_trace() -> None:
    model = _model("gpt2")
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_fc.weight[:, :8] = 0  # a quarter of the channels is constant: gelu of the bias
            block.mlp.c_fc.bias[:8] = 2
    ids = _batches(1)[0]["input_ids"]
    before = model(input_ids=ids).logits
    _prune(model, "flap", "mlp:0.25")
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)
