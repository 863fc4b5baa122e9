"""A GGUF file written by the reference package loads as the model it was written from."""

import json

import gguf
import numpy as np
import pytest
import tinymodels
import torch
from tinymodels import SENTENCES

from cohomcli.errors import InputRefused
from cohomcli.models import gguf as gguf_door
from cohomcli.models.activations import collect
from cohomcli.models.inspect import describe
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import ActivationOptions, LoadOptions

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleaved(weight, n_head):
    """llama.cpp's order of the rotary dimensions: the two halves of each head interleaved."""
    return weight.reshape(n_head, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def tensors(model):
    """GGUF name -> array, for a Llama."""
    config, state = model.config, {key: value.numpy() for key, value in model.state_dict().items()}
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    for layer in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                weight = interleaved(
                    weight, config.num_attention_heads if ours == "attn_q" else config.num_key_value_heads
                )
            yield f"blk.{layer}.{ours}.weight", weight


@pytest.fixture(scope="module")
def pico():
    model = tinymodels.build("llama", hidden_size=32, intermediate_size=64)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(value.half().float())  # so that half precision in the file loses nothing
    return model


@pytest.fixture(scope="module")
def file(pico, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "Pico-Llama.F16.gguf"
    config, inner = pico.config, json.loads(tinymodels.tokenizer("causal").backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(inner["vocab"], key=inner["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in inner["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for name, value in tensors(pico):
        writer.add_tensor(name, value.astype(np.float32 if name.endswith("norm.weight") else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_loads_as_the_model_it_was_written_from(file, pico):
    loaded = load(resolve(str(file)), LoadOptions())
    info = loaded.info
    assert (info.name, info.source, info.kind, info.lm_head) == ("Pico-Llama.F16", "gguf", "decoder", "causal")
    assert (info.n_layer, info.max_positions) == (3, 64)
    state = loaded.model.state_dict()
    for key, value in pico.state_dict().items():
        assert torch.equal(state[key], value), key
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
    for text in SENTENCES:
        assert loaded.tokenizer(text)["input_ids"] == tinymodels.tokenizer("causal")(text)["input_ids"]


@torch.no_grad()
def test_a_gguf_gives_the_activations_of_its_model(file, pico):
    found = collect(load(resolve(str(file)), LoadOptions()), list(SENTENCES), ActivationOptions(perplexity=True))
    ids = torch.tensor([tinymodels.tokenizer("causal")(SENTENCES[0])["input_ids"]])
    states = pico(input_ids=ids, output_hidden_states=True).hidden_states
    for layer, state in zip(("embedding", "layer_0", "layer_1"), states, strict=False):
        assert np.allclose(found.layers[layer][0], state[0, -1].numpy(), rtol=1e-4, atol=1e-5)
    assert found.metrics.n_predictions == found.n_tokens - len(SENTENCES)


def test_inspecting_a_gguf_reads_only_its_header(file, pico):
    found = describe(resolve(str(file)), LoadOptions())
    assert (found.architecture, found.n_layer, found.hidden_size, found.vocab_size) == ("llama", 3, 32, 320)
    assert found.n_parameters == sum(value.numel() for value in pico.parameters())
    assert found.dtypes == ("F16", "F32")
    assert found.files == ((file.name, file.stat().st_size),)


def test_loading_is_silent(file, capfd):
    load(resolve(str(file)), LoadOptions())
    assert capfd.readouterr() == ("", "")


def test_a_missing_extra_is_named(file, monkeypatch):
    monkeypatch.setattr(gguf_door, "find_spec", lambda name: None)
    with pytest.raises(InputRefused, match=r'reading GGUF needs gguf and accelerate; pip install "cohom\[gguf\]"'):
        load(resolve(str(file)), LoadOptions())
    assert describe(resolve(str(file)), LoadOptions()).n_layer == 3, "its header needs no extra"


def test_a_gguf_without_all_weights_and_a_cut_one(file, tmp_path, pico):
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputRefused, match=r"cut short: .* bytes are missing; download it again"):
        load(resolve(str(tmp_path / "cut.gguf")), LoadOptions())
    content = file.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight")
    (tmp_path / "lacks.gguf").write_bytes(content)
    with pytest.raises(InputRefused, match=r"lacks 1 weights \('model.layers.1.mlp.up_proj.weight'\)"):
        load(resolve(str(tmp_path / "lacks.gguf")), LoadOptions())
    (tmp_path / "other.gguf").write_bytes(file.read_bytes().replace(b"llama", b"lxxma"))
    with pytest.raises(InputRefused, match="cannot be read"):
        load(resolve(str(tmp_path / "other.gguf")), LoadOptions())
