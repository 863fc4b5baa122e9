"""The exactness report of models: known answers by construction, and agreement with the measure on raw inputs."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cohomcli.models.exactness import exactness_report
from cohomcli.models.layout import find_stacks
from cohomcli.models.maps import consecutive_maps, writer_inputs
from cohomcli.nn.exactness import measure_pair

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}


def _model(family: str):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SMALL) if family == "llama" else CONFIG_MAPPING[family](
        vocab_size=40, n_embd=16, n_layer=3, n_head=4, n_inner=32
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def _batches():
    ids = torch.randint(5, 40, (4, 12), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_report_is_the_measure_on_the_inputs_of_the_writers(family: str) -> None:
    model = _model(family)
    found = exactness_report(model, find_stacks(model).stacks[0], _batches())
    maps = consecutive_maps(model)
    assert [one.name for one in found] == [pair.name for pair in maps] == ["layer_0", "layer_1"]
    with writer_inputs(maps, rows=10**6) as seen:
        model(**_batches()[0])
    for one, pair in zip(found, maps, strict=True):
        direct = measure_pair(pair.pair(seen[pair.name]))
        assert (one.rank_image, one.rank_composite, one.free_rank) == (
            direct.rank_image, direct.rank_composite, direct.free_rank,
        )  # fmt: skip
        assert one.kappa == pytest.approx(direct.complex_defect, abs=1e-4)
        assert one.eta == pytest.approx(direct.homology_defect, abs=1e-4)
        assert one.read_alignment == pytest.approx(direct.read_alignment, rel=1e-4)


def test_readers_that_see_half_of_what_is_written_leave_the_other_half_free() -> None:
    model = _model("llama")
    for layer in model.model.layers:
        for reader in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            reader.weight[:, 8:] = 0  # the second half of the stream is not read
    for one in exactness_report(model, find_stacks(model).stacks[0], _batches(), energy=0.0):
        assert (one.rank_image, one.rank_composite, one.free_rank, one.harmonic) == (16, 8, 8, 0)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight[:8] = 0  # and the first half not written: a complex, exact
    for one in exactness_report(model, find_stacks(model).stacks[0], _batches(), energy=0.0):
        assert (one.rank_image, one.free_rank) == (8, 8)
        assert one.kappa == pytest.approx(0, abs=1e-6)
        assert one.eta == pytest.approx(0, abs=1e-6)
        assert one.kernel_share == pytest.approx(1)
