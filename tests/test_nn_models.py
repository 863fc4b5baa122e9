"""The two architectures as transformers models: what they may see, their norms, their folders, and the model door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from cohomcli.__main__ import main
from cohomcli.assets import model_dir
from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadOptions
from cohomcli.nn import CohomologicalConfig, CohomologicalTransformer, NonLinearTransformer, measure_pair

SMALL = {"vocab_size": 50, "dim": 16, "sequence_dim": 4, "num_h0_layers": 1, "num_h1_layers": 1, "num_h2_layers": 1}
HEADS = {"h0_heads": 4, "h1_heads": 2, "h2_heads": 2, "h0_window": 2, "h1_window": 4}


def cohomological(**settings: Any) -> CohomologicalTransformer:
    torch.manual_seed(0)
    return CohomologicalTransformer(**{**SMALL, **HEADS, **settings}).eval()


def nonlinear(**settings: Any) -> NonLinearTransformer:
    torch.manual_seed(0)
    wanted = {"vocab_size": 50, "dim": 16, "depth": 3, "heads": 2, "window_size": 1, "height": 9, "width": 12}
    return NonLinearTransformer(**{**wanted, **settings}).eval()


def reach(model: Any, shape: tuple[int, ...]) -> Tensor:
    """(N, N) boolean: whether the logits of cell i depend on the embedding of cell j."""
    n = torch.Size(shape).numel()
    embedded = torch.randn(1, *shape, 16, requires_grad=True)
    logits = model(inputs_embeds=embedded).logits.view(n, -1)
    rows = [torch.autograd.grad(logits[i].sum(), embedded, retain_graph=True)[0].abs().sum(-1) for i in range(n)]
    return torch.stack(rows).view(n, n) > 0


def test_causal_model_sees_no_future_and_all_of_the_past() -> None:
    seen = reach(cohomological(), (10,))
    assert torch.equal(seen, torch.ones(10, 10, dtype=torch.bool).tril())


def test_masked_model_and_grid_model_see_everything() -> None:
    assert reach(cohomological(causal=False), (10,)).all()
    assert reach(nonlinear(), (4, 6)).all()
    assert reach(nonlinear(chunk=2), (4, 6)).all()


def test_local_grid_model_reaches_as_far_as_its_windows_together() -> None:
    seen = reach(nonlinear(depth=2, global_every=0), (1, 9))
    index = torch.arange(9)
    assert torch.equal(seen, (index[:, None] - index[None, :]).abs() <= 2)


@pytest.mark.parametrize("exact", ["hard", "soft"])
def test_maps_between_levels_form_a_complex_when_asked(exact: str) -> None:
    model = cohomological(exact=exact)
    output = model(torch.randint(0, 50, (2, 9)), return_structure=True)
    defect = measure_pair(output.map_pairs[0], 0.0).complex_energy
    assert (defect < 1e-10) == (exact == "hard")
    assert [tuple(c.shape) for c in output.sequence_components] == [(2, 9, 4)] * 3
    assert all(page.shape == (1, 9, 16) for page in output.pages)
    assert model(torch.randint(0, 50, (2, 9))).map_pairs is None


@torch.no_grad()
def test_every_position_has_its_own_prediction_and_order_matters() -> None:
    model = cohomological()
    ids = torch.arange(12)[None]
    logits = model(ids).logits[0]
    assert logits.std(dim=0).mean() > 0.1 * logits.std(dim=1).mean()
    swapped = ids.clone()
    swapped[0, 2], swapped[0, 7] = ids[0, 7], ids[0, 2]
    assert not torch.allclose(model(swapped).logits[0, -1], logits[-1], atol=1e-4)


def test_rows_and_columns_are_told_apart_on_an_empty_canvas() -> None:
    logits = nonlinear()(torch.zeros(1, 5, 7, dtype=torch.long)).logits[0]
    flat = logits.view(35, -1)
    apart = torch.cdist(flat, flat) + 10 * torch.eye(35)
    assert apart.min() > 1e-3
    assert not torch.allclose(logits[:5, :5], logits[:5, :5].transpose(0, 1), atol=1e-3)


@pytest.mark.parametrize("kind", ["cohomological", "nonlinear"])
def test_norms_are_stable_from_depth_one_to_twenty_four(kind: str) -> None:
    norms = []
    for depth in (1, 6, 12, 24):
        if kind == "nonlinear":
            model: Any = nonlinear(depth=depth, dim=32)
            hidden = model(torch.randint(0, 50, (1, 6, 6)), output_hidden_states=True).hidden_states[-1]
        else:
            levels = {"num_h0_layers": depth, "num_h1_layers": 1, "num_h2_layers": 1}
            model = cohomological(**{**levels, "dim": 32})
            hidden = model(torch.randint(0, 50, (1, 36)), output_hidden_states=True).hidden_states[-1]
        norms.append(hidden.norm(dim=-1).mean().item())
    assert max(norms) < 3 * min(norms)


@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_no_text(causal: bool) -> None:
    model = cohomological(causal=causal)
    ids = torch.randint(0, 50, (2, 7))
    more = torch.cat([ids, torch.randint(0, 50, (2, 5))], 1)
    mask = torch.tensor([[1] * 7 + [0] * 5] * 2)
    assert torch.allclose(model(more, mask).logits[:, :7], model(ids).logits, atol=1e-5)
    left = model(more.flip(1), mask.flip(1)).logits[:, 5:]
    assert torch.allclose(left, model(ids.flip(1)).logits, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 2])
def test_smaller_grids_in_a_batch_are_as_if_alone(chunk: int | None) -> None:
    model = nonlinear(chunk=chunk)
    small = torch.randint(0, 50, (1, 3, 5))
    large = torch.randint(0, 50, (1, 6, 8))
    large[:, :3, :5] = small
    mask = torch.zeros(1, 6, 8, dtype=torch.long)
    mask[:, :3, :5] = 1
    assert torch.allclose(model(large, mask).logits[:, :3, :5], model(small).logits, atol=1e-5)


def test_texts_are_written_into_rows() -> None:
    model = nonlinear()
    ids = torch.randint(0, 50, (2, 24))
    as_text = model(ids).logits
    as_grid = model(ids.view(2, 2, 12)).logits
    assert torch.allclose(as_text, as_grid.flatten(1, 2), atol=1e-6)
    cut = model(ids[:, :20], torch.ones(2, 20)).logits  # the second line is not full
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[:, 20:] = 0
    assert torch.allclose(cut, model(ids.view(2, 2, 12), mask.view(2, 2, 12)).logits.flatten(1, 2)[:, :20], atol=1e-5)


def test_too_large_grids_and_impossible_settings_are_named() -> None:
    with pytest.raises(UsageError, match="10 x 12 cells"):
        nonlinear()(torch.zeros(1, 10, 12, dtype=torch.long))
    with pytest.raises(UsageError, match="heads"):
        cohomological(h1_heads=3)
    with pytest.raises(UsageError, match="block calls"):
        nonlinear(depth=2000)
    with pytest.raises(UsageError, match="exact"):
        CohomologicalConfig(exact="very")


def test_iterations_share_weights() -> None:
    once, twice = nonlinear(), nonlinear(iterations=2)
    assert sum(p.numel() for p in once.parameters()) == sum(p.numel() for p in twice.parameters())
    hidden = twice(torch.zeros(1, 4, 4, dtype=torch.long), output_hidden_states=True).hidden_states
    assert len(hidden) == 1 + 2 * 3


MODELS = {
    "causal": (lambda: cohomological(), AutoModelForCausalLM),
    "masked": (lambda: cohomological(causal=False), AutoModelForMaskedLM),
    "grid": (lambda: nonlinear(chunk=2, iterations=2), AutoModelForMaskedLM),
    "tied grid": (lambda: nonlinear(tie_word_embeddings=True), AutoModelForMaskedLM),
}


@pytest.mark.parametrize("kind", MODELS)
def test_folders_are_read_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    make, auto = MODELS[kind]
    model = make()
    ids = torch.randint(0, 50, (2, 9))
    wanted = model(ids).logits
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    again, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again(ids).logits, wanted)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(ids)[0], model.model(ids)[0])
    assert type(model).from_pretrained(tmp_path).config.to_dict() == again.config.to_dict()


@pytest.mark.parametrize("kind", MODELS)
def test_export_captures_the_same_function_step_by_step(kind: str) -> None:
    model = MODELS[kind][0]()
    ids = torch.randint(0, 50, (1, 9))
    fused = model(ids).logits
    model.set_attn_implementation("eager")
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    exported = torch.export.export(model, (), arguments, strict=False)
    assert torch.allclose(exported.module()(**arguments).logits, fused, atol=1e-5)
    targets = {str(node.target) for node in exported.graph.nodes}
    assert any("softmax" in target for target in targets)
    assert not any("scaled_dot_product" in target for target in targets)


def test_generation_continues_a_prompt_greedily() -> None:
    model = cohomological()
    ids = torch.randint(0, 50, (1, 4))
    made = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    wanted = ids
    for _ in range(3):
        wanted = torch.cat([wanted, model(wanted).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(made, wanted)


def test_labels_give_the_mean_loss_in_nats() -> None:
    ids = torch.randint(0, 50, (2, 9))
    model = cohomological()
    output = model(ids, labels=ids)
    logp = output.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    assert output.loss.item() == pytest.approx(-logp.mean().item(), rel=1e-5)
    grid = nonlinear()
    labels = torch.full((1, 3, 4), -100)
    labels[0, 1, 2] = 5
    out = grid(torch.zeros(1, 3, 4, dtype=torch.long), labels=labels)
    assert out.loss.item() == pytest.approx(-out.logits[0, 1, 2].log_softmax(-1)[5].item(), rel=1e-5)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """One folder per architecture, with the tokenizer of tiny-gpt beside it."""
    made = {}
    for name, model in {
        "causal": cohomological(vocab_size=2048),
        "grid": nonlinear(vocab_size=2048, iterations=2),
    }.items():
        made[name] = tmp_path / name
        model.save_pretrained(made[name])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(model_dir("tiny-gpt") / file, made[name])
    return made


def test_the_model_door_reads_them_without_trusting_code(folders: dict[str, Path]) -> None:
    causal = load(resolve(str(folders["causal"])), LoadOptions())
    assert (causal.info.kind, causal.info.lm_head, causal.info.n_layer) == ("decoder", "causal", 3)
    grid = load(resolve(str(folders["grid"])), LoadOptions())
    assert (grid.info.kind, grid.info.lm_head, grid.info.n_layer) == ("encoder", "masked", 6)
    assert grid.info.max_positions == 9 * 12


def test_inspect_and_tda_run_on_a_folder(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folders["grid"]), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["architecture"], told["n_layer"]) == ("NonLinearTransformer", 6)
    arguments = ["--samples", "12", "--max-length", "16", "--sites", "block,attention,mlp", "--quiet", "--json"]
    arguments += ["--no-plots", "--no-html"]
    arguments.append("--output-dir")
    for name in folders:
        assert main(["tda", "--model", str(folders[name]), *arguments, str(folders[name].parent / "runs")]) == 0
        layers = [layer["name"] for layer in json.loads(capsys.readouterr().out)["topology"]["layers"]]
        assert layers[0] == "embedding"
        assert layers[-1] == "final_norm"
        assert {"layer_0.attention", "layer_0.mlp"} <= set(layers)


def test_a_broken_configuration_of_ours_is_refused_in_one_line(folders: dict[str, Path]) -> None:
    file = folders["grid"] / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "heads": 5, "num_attention_heads": -1}))
    with pytest.raises(InputRefused, match="not valid"):
        load(resolve(str(folders["grid"])), LoadOptions())
