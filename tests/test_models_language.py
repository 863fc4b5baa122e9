"""Perplexities against transformers' own loss and against brute force."""

import math

import numpy as np
import pytest
import tinymodels
import torch
import transformers as hf
from tinymodels import DECODERS, MASKED, SENTENCES, SEQ2SEQ

from cohomcli.assets import corpus_dir
from cohomcli.errors import AnalysisIncomplete
from cohomcli.models import heads, memory
from cohomcli.models.activations import collect, measure
from cohomcli.models.heads import head_logits
from cohomcli.models.language import _weighted
from cohomcli.models.layout import run_stack
from cohomcli.models.load import load
from cohomcli.models.probe import find_layout
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import ActivationOptions, LoadedModel, LoadOptions

TEXTS = list(SENTENCES)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_causal_perplexity_is_the_loss_transformers_computes(name):
    loaded, model = tinymodels.loaded(name), tinymodels.build(name)
    losses, hits, count = [], 0, 0
    for text in TEXTS:
        ids = torch.tensor([loaded.tokenizer(text, truncation=True, max_length=40)["input_ids"]])
        out = model(input_ids=ids, labels=ids)
        losses.append(float(out.loss) * (ids.shape[1] - 1))
        hits += int((out.logits[0, :-1].argmax(-1) == ids[0, 1:]).sum())
        count += ids.shape[1] - 1
    found = collect(loaded, TEXTS, ActivationOptions(perplexity=True, max_length=40)).metrics
    assert found.kind == "perplexity"
    assert found.loss == pytest.approx(sum(losses) / count, rel=1e-5)
    assert found.perplexity == math.exp(found.loss)
    assert (found.accuracy, found.n_predictions) == (pytest.approx(hits / count), count)
    assert found.standard_error is None


def brute_force_pseudo_loss(name, texts):
    """Salazar et al. (2020), one forward pass of the whole model per position: text -> losses and hits."""
    loaded, model = tinymodels.loaded(name), tinymodels.build(name)
    result = []
    for text in texts:
        ids = loaded.tokenizer(text)["input_ids"]
        rows = []
        for position in range(1, len(ids) - 1):  # all but the two special tokens at the ends
            masked = torch.tensor([[*ids[:position], loaded.tokenizer.mask_token_id, *ids[position + 1 :]]])
            logits = model(input_ids=masked).logits[0, position]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[position]))
            rows.append((float(loss), int(logits.argmax()) == ids[position]))
        result.append(np.array(rows))
    return result


@pytest.mark.parametrize("name", MASKED)
@torch.no_grad()
def test_exact_pseudo_perplexity_is_brute_force(name):
    texts = TEXTS[:4]
    truth = np.concatenate(brute_force_pseudo_loss(name, texts))
    found, reason = measure(tinymodels.loaded(name), texts, ActivationOptions(mask_positions=0, token_budget=300))
    assert (found.kind, reason) == ("pseudo-perplexity", "")
    assert found.loss == pytest.approx(truth[:, 0].mean(), rel=1e-5)
    assert found.accuracy == pytest.approx(truth[:, 1].mean())
    assert found.n_predictions == len(truth)
    assert found.standard_error is None


@torch.no_grad()
def test_sampled_pseudo_perplexity_estimates_the_exact_one():
    loaded = tinymodels.loaded("bert")
    truth = brute_force_pseudo_loss("bert", TEXTS)
    exact = np.concatenate(truth)[:, 0].mean()
    estimates = [measure(loaded, TEXTS, ActivationOptions(mask_positions=3, seed=seed))[0] for seed in range(16)]
    assert {found.n_predictions for found in estimates} == {sum(min(3, len(rows)) for rows in truth)}
    losses = np.array([found.loss for found in estimates])
    assert len(set(losses)) == 16, "another seed draws other positions"
    # the design variance of 3 of n positions without replacement, per text, with the weights of the estimator
    weights = np.array([len(rows) for rows in truth]) / sum(map(len, truth))
    design = sum(
        w**2 * rows[:, 0].var(ddof=1) / 3 * (1 - 3 / len(rows)) for w, rows in zip(weights, truth, strict=True)
    )
    assert abs(losses.mean() - exact) < 4 * math.sqrt(design / 16), "unbiased"
    assert losses.std(ddof=1) == pytest.approx(math.sqrt(design), rel=0.6)
    assert min(found.standard_error for found in estimates) > 0


def test_a_seed_gives_the_same_positions_whatever_the_batches():
    loaded = tinymodels.loaded("bert")
    first = measure(loaded, TEXTS, ActivationOptions(mask_positions=2, seed=5))[0]
    again = measure(loaded, TEXTS, ActivationOptions(mask_positions=2, seed=5, token_budget=64))[0]
    assert again.loss == pytest.approx(first.loss, rel=1e-6)
    assert again.accuracy == first.accuracy


def test_the_standard_error_is_that_of_the_mean_for_texts_of_equal_weight():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(40, 6))
    mean, error = _weighted(values.ravel(), np.repeat(np.arange(40), 6), np.full(40, 9.0))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.mean(axis=1).std(ddof=1) / math.sqrt(40))
    assert _weighted(np.ones(3), np.zeros(3, dtype=int), np.array([3.0])) == (1.0, None)


@pytest.mark.parametrize("name", [*DECODERS, *MASKED])
@torch.no_grad()
def test_the_head_alone_gives_the_models_logits(name):
    loaded, model = tinymodels.loaded(name), tinymodels.build(name)
    stack = find_layout(loaded.model).stacks[0]
    ids = torch.tensor([[20, 30, 40, 50], [60, 70, 80, 90]])
    states = run_stack(stack, ids, torch.ones_like(ids), None, torch.ones_like(ids))
    expected = model(input_ids=ids).logits
    assert torch.allclose(head_logits(loaded.model, stack, states), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(loaded.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5), "and is left as it was"


@torch.no_grad()
def test_heads_that_look_at_other_fields_of_their_backbone(tmp_path):
    settings = {**tinymodels.PICO["llama"].settings, "num_local_experts": 2}
    torch.manual_seed(0)
    model = hf.MixtralForCausalLM(hf.MixtralConfig(**settings)).eval()
    model.save_pretrained(tmp_path)
    tinymodels.tokenizer("causal").save_pretrained(tmp_path)
    loaded = load(resolve(str(tmp_path)), LoadOptions())
    ids = torch.tensor([loaded.tokenizer(TEXTS[0])["input_ids"]])
    found = measure(loaded, TEXTS[:1], ActivationOptions())[0]
    assert found.loss == pytest.approx(float(model(input_ids=ids, labels=ids).loss), rel=1e-5)


def test_slices_of_positions_do_not_change_the_metrics(monkeypatch):
    loaded = tinymodels.loaded("gemma2")
    whole = measure(loaded, TEXTS, ActivationOptions())[0]
    monkeypatch.setattr(heads, "logit_rows", lambda vocab_size: 7)
    sliced = measure(loaded, TEXTS, ActivationOptions())[0]
    # A matrix product of other sizes may sum in another order: equal to float32 rounding, not bit for bit.
    assert sliced.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (sliced.accuracy, sliced.n_predictions) == (whole.accuracy, whole.n_predictions)
    assert memory.logit_rows(50_000) * 50_000 * 4 <= 64 * 2**20


def test_the_pass_that_collects_measures_the_same():
    loaded = tinymodels.loaded("llama")
    found = collect(loaded, TEXTS, ActivationOptions(perplexity=True, layers=("0",)))
    assert found.metrics == measure(loaded, TEXTS, ActivationOptions())[0]
    assert list(found.layers) == ["layer_0"]


def test_metrics_that_cannot_be_computed_say_why(tmp_path):
    for name in SEQ2SEQ:
        metrics, reason = measure(tinymodels.loaded(name), TEXTS, ActivationOptions())
        assert metrics is None
        assert "encoder-decoder" in reason
    tinymodels.build("gpt2").transformer.save_pretrained(tmp_path)
    tinymodels.tokenizer("causal").save_pretrained(tmp_path)
    found = collect(load(resolve(str(tmp_path)), LoadOptions()), TEXTS, ActivationOptions(perplexity=True))
    assert (found.metrics, found.metrics_reason) == (None, "the checkpoint has no language-modelling head")
    assert collect(tinymodels.loaded("gpt2"), TEXTS, ActivationOptions()).metrics_reason == "not asked for"
    bert = tinymodels.loaded("bert")
    maskless = LoadedModel(bert.model, tinymodels.tokenizer("causal"), bert.info)
    assert measure(maskless, TEXTS, ActivationOptions()) == (None, "the tokenizer has no mask token")
    assert measure(tinymodels.loaded("gpt2"), ["a"], ActivationOptions()) == (None, "no text has a token to predict")


def test_a_loss_that_is_not_finite_is_no_number(tmp_path):
    loaded = load(resolve(str(tinymodels.save("gpt2", tmp_path / "m"))), LoadOptions())
    loaded.model.lm_head.register_forward_hook(lambda module, args, output: output * float("nan"))
    with pytest.raises(AnalysisIncomplete, match="loss is nan"):
        measure(loaded, TEXTS, ActivationOptions())


def test_the_built_in_models_beat_a_uniform_guess_by_far():
    plays = sorted(corpus_dir("heldout").iterdir())
    texts = [text for play in plays for text in play.read_text(encoding="utf-8").split("\n\n") if len(text) > 80][:12]
    for name in ("tiny-gpt", "tiny-bert"):
        loaded = load(resolve(name), LoadOptions())
        found, _ = measure(loaded, texts, ActivationOptions(mask_positions=4))
        assert found.loss < math.log(loaded.info.vocab_size) - 2
        assert found.accuracy > 0.05
