"""The structural objective on models of every kind: off is off, on is what the losses say, masks are respected."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from cohomcli.errors import UsageError
from cohomcli.models.maps import consecutive_maps
from cohomcli.nn import CohomologicalTransformer
from cohomcli.training.structure import Structural, exactness_of

T = 12


def _gpt() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=30, n_positions=T, n_embd=16, n_layer=3, n_head=2, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0
    )
    return GPT2LMHeadModel(config).train()


def _bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=T, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    return BertForMaskedLM(config).train()


def _own() -> CohomologicalTransformer:
    torch.manual_seed(0)
    return CohomologicalTransformer(vocab_size=30, dim=16, sequence_dim=8, num_heads=2).train()


def _inputs(rows: int = 4) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 30, (rows, T), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _gradient(model: nn.Module, exact: float, spectral: float) -> dict[str, torch.Tensor]:
    model.zero_grad()
    outputs, terms = Structural(model, exact, spectral).forward(model, _inputs())
    (outputs.logits.pow(2).mean() + sum(terms.values())).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [_gpt, _bert, _own])
def test_weight_zero_changes_no_gradient(make) -> None:
    model = make()
    model.zero_grad()
    model(**_inputs()).logits.pow(2).mean().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    off = _gradient(model, 0.0, 0.0)
    assert all(torch.equal(off[name], value) for name, value in plain.items())
    on = _gradient(model, 0.5, 0.5)
    assert any(not torch.equal(on[name], value) for name, value in plain.items())


@pytest.mark.parametrize("make", [_gpt, _bert, _own])
def test_terms_scale_with_their_weights_and_leave_the_outputs_alone(make) -> None:
    model = make()
    outputs, terms = Structural(model, 0.2, 0.4).forward(model, _inputs())
    _, twice = Structural(model, 0.4, 0.8).forward(model, _inputs())
    assert set(terms) == {"exact", "spectral"}
    for name, value in terms.items():
        assert value > 0
        torch.testing.assert_close(twice[name], 2 * value)
    torch.testing.assert_close(outputs.logits, model(**_inputs()).logits)


def test_pages_are_the_models_own_states_under_windows() -> None:
    model = _gpt()
    pages = Structural(model, 0.0, 1.0)._pages(_inputs(1), model.transformer(**_inputs(1))[0])
    assert len(pages) == 2  # windows of 4 and none; 16 is wider than the text
    whole = model.transformer(**_inputs(1))[0]
    torch.testing.assert_close(pages[1], whole)
    torch.testing.assert_close(
        pages[0][:, :5], whole[:, :5], rtol=1e-4, atol=1e-5
    )  # the first five see all before them
    assert not torch.allclose(pages[0][:, -1], whole[:, -1], atol=1e-4)
    ids = _inputs(1)
    changed = {**ids, "input_ids": ids["input_ids"].clone()}
    changed["input_ids"][0, -1] = 7
    other = Structural(model, 0.0, 1.0)._pages(changed, model.transformer(**changed)[0])
    torch.testing.assert_close(other[0][:, :-1], pages[0][:, :-1])  # causal: the past does not see the last token


def test_a_model_without_known_maps_is_refused_only_for_the_exact_loss() -> None:
    model = _gpt()
    for block in model.transformer.h:
        block.mlp.c_proj, block.mlp.other = nn.Identity(), block.mlp.c_proj
    assert consecutive_maps(model) == ()
    with pytest.raises(UsageError, match="exact-weight"):
        Structural(model, 0.1, 0.0)
    Structural(model, 0.0, 0.1)


@pytest.mark.parametrize("make", [_gpt, _bert, _own])
def test_measures_are_shares(make) -> None:
    found = exactness_of(make().eval(), _inputs())
    assert set(found) == {"complex_defect", "homology_defect", "free_share", "read_alignment"}
    assert all(0 <= found[name] <= 1 for name in ("complex_defect", "homology_defect", "free_share"))


def test_a_true_complex_has_no_complex_defect() -> None:
    model = _gpt()
    with torch.no_grad():
        for one, following in zip(model.transformer.h, model.transformer.h[1:], strict=False):
            one.mlp.c_proj.weight[:, 8:] = 0  # writes the first eight features
            following.attn.c_attn.weight[:8] = 0  # reads the last eight
    found = exactness_of(model.eval(), _inputs())
    assert found["complex_defect"] == pytest.approx(0, abs=1e-12)
    assert found["homology_defect"] <= 1 / 8  # of each image's 8 directions the 1% of energy that is left out takes one
    assert found["free_share"] == 1
