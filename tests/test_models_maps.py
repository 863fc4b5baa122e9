"""The maps between neighbouring blocks: found in every family, the right way round, with the inputs they really get."""

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

from cohomcli.models.maps import consecutive_maps, weight_matrix, writer_inputs

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
FAMILIES = {
    "gpt2": {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_inner": 24},
    "llama": SMALL | {"num_key_value_heads": 2},
    "qwen2": SMALL | {"num_key_value_heads": 2},
    "gemma": SMALL | {"num_key_value_heads": 2, "head_dim": 4},
    "gpt_neox": SMALL,
    "bert": SMALL,
    "roberta": SMALL | {"max_position_embeddings": 20},
    "distilbert": {"vocab_size": 40, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24},
    "opt": SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16},
}


def _model(family: str) -> nn.Module:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**FAMILIES[family])
    return AutoModel.from_config(config).eval()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_writer_and_reader_do_what_the_model_does(family: str) -> None:
    model = _model(family)
    maps = consecutive_maps(model)
    assert [each.name for each in maps] == ["layer_0", "layer_1"]
    written, read = {}, {}
    for each in maps:
        each.writer.register_forward_hook(lambda m, a, o, name=each.name: written.update({name: (a[0], o)}))
        for at, reader in enumerate(each.readers):
            reader.register_forward_hook(lambda m, a, o, key=(each.name, at): read.update({key: (a[0], o)}))
    ids = torch.arange(14).reshape(2, 7) + 5
    with torch.no_grad(), writer_inputs(maps, rows=1000) as seen:
        model(input_ids=ids)
    for each in maps:
        inputs, outputs = written[each.name]
        bias = getattr(each.writer, "bias", None)
        expected = inputs @ weight_matrix(each.writer).T + (0 if bias is None else bias)
        torch.testing.assert_close(outputs.reshape(expected.shape), expected)
        assert torch.equal(seen[each.name], inputs.flatten(0, -2))
        for at, reader in enumerate(each.readers):
            inputs, outputs = read[each.name, at]
            bias = getattr(reader, "bias", None)
            expected = inputs @ weight_matrix(reader).T + (0 if bias is None else bias)
            torch.testing.assert_close(outputs.reshape(expected.shape), expected)
        pair = each.pair(seen[each.name])
        assert pair.first.shape == (16, 24)
        assert pair.second.shape[1] == 16


def test_the_gain_of_the_norm_belongs_to_the_reader() -> None:
    model = _model("gpt2")
    with torch.no_grad():
        model.h[1].ln_1.weight.copy_(torch.arange(16.0))
    pair = consecutive_maps(model)[0].pair(None)
    assert torch.equal(pair.second, model.h[1].attn.c_attn.weight.T * torch.arange(16.0))
    gemma = _model("gemma")
    with torch.no_grad():
        gemma.layers[1].input_layernorm.weight.fill_(-1.0)  # Gemma stores its gain less one
    assert consecutive_maps(gemma)[0].pair(None).second.abs().max() == 0


def test_unknown_architectures_have_no_maps() -> None:
    assert consecutive_maps(nn.Sequential(nn.Linear(3, 3))) == ()
    config = CONFIG_MAPPING["mamba"](vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4)
    assert consecutive_maps(AutoModelForCausalLM.from_config(config)) == ()


def test_rows_are_thinned_evenly() -> None:
    model = _model("bert")
    maps = consecutive_maps(model)
    with torch.no_grad(), writer_inputs(maps, rows=5) as seen:
        model(input_ids=torch.arange(14).reshape(2, 7) + 5)
    assert all(len(value) == 5 for value in seen.values())  # 14 rows, every third
