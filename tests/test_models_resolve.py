"""`--model` values, preset figures, and that neither needs torch."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
import tinymodels
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from cohomcli.assets import BUILTIN_MODELS, model_dir
from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.presets import PRESETS
from cohomcli.models.pretrained import skeleton
from cohomcli.models.resolve import known_names, resolve
from cohomcli.names import safe_name

SOURCE_SYSTEM_PRESETS = {
    "gpt2", "distilgpt2", "bert", "distilbert", "opt-125m", "opt-350m", "pythia-70m", "pythia-160m", "pythia-410m",
    "smollm-135m", "smollm-360m", "qwen2-0.5b", "gpt-neo-125m", "smollm2-135m", "smollm2-360m", "qwen2.5-0.5b",
    "qwen2.5-coder-0.5b", "gemma2-2b",
}  # fmt: skip


def llama(hidden, inner, layers, heads, kv, vocab=49152, tied=True):
    return hf.LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv, tie_word_embeddings=tied, architectures=["LlamaForCausalLM"],
    )  # fmt: skip


def neox(hidden, inner, layers, heads):
    return hf.GPTNeoXConfig(
        vocab_size=50304, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, architectures=["GPTNeoXForCausalLM"],
    )  # fmt: skip


def named(config, architecture):
    config.architectures = [architecture]
    return config


def qwen2():
    config = hf.Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return named(config, "Qwen2ForCausalLM")


# The published configurations, written down from the models' own config.json files; where transformers' defaults are
# the published model they are used as they are.
PUBLISHED = {
    "gpt2": lambda: named(hf.GPT2Config(), "GPT2LMHeadModel"),
    "gpt2-medium": lambda: named(hf.GPT2Config(n_embd=1024, n_layer=24, n_head=16), "GPT2LMHeadModel"),
    "distilgpt2": lambda: named(hf.GPT2Config(n_layer=6), "GPT2LMHeadModel"),
    "bert": lambda: named(hf.BertConfig(), "BertForMaskedLM"),
    "distilbert": lambda: named(hf.DistilBertConfig(), "DistilBertForMaskedLM"),
    "opt-125m": lambda: named(hf.OPTConfig(), "OPTForCausalLM"),
    "opt-350m": lambda: named(
        hf.OPTConfig(
            hidden_size=1024, num_hidden_layers=24, ffn_dim=4096, num_attention_heads=16, word_embed_proj_dim=512,
            do_layer_norm_before=False,
        ),
        "OPTForCausalLM",
    ),
    "pythia-70m": lambda: neox(512, 2048, 6, 8),
    "pythia-160m": lambda: neox(768, 3072, 12, 12),
    "pythia-410m": lambda: neox(1024, 4096, 24, 16),
    "pythia-1b": lambda: neox(2048, 8192, 16, 8),
    "smollm-135m": lambda: llama(576, 1536, 30, 9, 3),
    "smollm2-135m": lambda: llama(576, 1536, 30, 9, 3),
    "smollm-360m": lambda: llama(960, 2560, 32, 15, 5),
    "smollm2-360m": lambda: llama(960, 2560, 32, 15, 5),
    "smollm2-1.7b": lambda: llama(2048, 8192, 24, 32, 32),
    "tinyllama": lambda: llama(2048, 5632, 22, 32, 4, 32000, tied=False),
    "llama3.2-1b": lambda: llama(2048, 8192, 16, 32, 8, 128256),
    "qwen2-0.5b": qwen2,
    "qwen2.5-0.5b": qwen2,
    "qwen2.5-coder-0.5b": qwen2,
    "qwen3-0.6b": lambda: named(
        hf.Qwen3Config(
            vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
        ),
        "Qwen3ForCausalLM",
    ),
    "gpt-neo-125m": lambda: named(
        hf.GPTNeoConfig(hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]]),
        "GPTNeoForCausalLM",
    ),
    "gemma2-2b": lambda: named(hf.Gemma2Config(), "Gemma2ForCausalLM"),
    "phi-1.5": lambda: named(hf.PhiConfig(), "PhiForCausalLM"),
    "roberta": lambda: named(
        hf.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1), "RobertaForMaskedLM"
    ),
    "albert": lambda: named(
        hf.AlbertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072), "AlbertForMaskedLM"
    ),
    "electra-small": lambda: named(hf.ElectraConfig(), "ElectraForPreTraining"),
    "modernbert": lambda: named(hf.ModernBertConfig(), "ModernBertForMaskedLM"),
    "all-minilm-l6-v2": lambda: named(
        hf.BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536), "BertModel"
    ),
    "t5-small": lambda: named(hf.T5Config(), "T5ForConditionalGeneration"),
    "bart-base": lambda: named(
        hf.BartConfig(
            d_model=768, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=3072, decoder_ffn_dim=3072,
            encoder_attention_heads=12, decoder_attention_heads=12,
        ),
        "BartForConditionalGeneration",
    ),
}  # fmt: skip


def test_every_preset_of_the_source_system_is_there():
    assert set(PRESETS) >= SOURCE_SYSTEM_PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_figures_are_those_of_the_published_configuration(name):
    config = PUBLISHED[name]()
    layers = config.num_hidden_layers
    if config.is_encoder_decoder:
        layers += getattr(config, "decoder_layers", None) or config.num_decoder_layers
    assert PRESETS[name].n_layer == layers
    assert PRESETS[name].n_parameters == sum(value.numel() for value in skeleton(config).parameters())
    assert (PRESETS[name].kind == "encoder-decoder") == config.is_encoder_decoder


def test_builtin_preset_and_hub_names():
    for name in BUILTIN_MODELS:
        source = resolve(name)
        assert (source.name, source.kind, source.path) == (name, "builtin", model_dir(name))
    assert resolve("SmolLM2-135m").location == "HuggingFaceTB/SmolLM2-135M"
    assert resolve("smollm2-135m").path is None
    hub = resolve("some-org/Some_Model-1.5b")
    assert (hub.kind, hub.location, hub.name) == ("hub", "some-org/Some_Model-1.5b", "Some_Model-1.5b")
    assert set(known_names()) == {*BUILTIN_MODELS, *PRESETS}


def test_local_folders_and_files(tmp_path, monkeypatch):
    folder = tinymodels.saved("gpt2")
    for reference in (folder, folder / "config.json"):
        source = resolve(str(reference))
        assert (source.kind, source.location, source.weights_file) == ("folder", str(folder), None)
    assert resolve(str(folder / "model.safetensors")).weights_file == "model.safetensors"
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve("gpt2").kind == "preset"
    assert resolve("./gpt2").kind == "folder"


def test_a_gguf_is_known_by_its_bytes_not_its_suffix(tmp_path):
    for name in ("a.gguf", "b.bin"):
        (tmp_path / name).write_bytes(b"GGUF" + bytes(20))
        assert resolve(str(tmp_path / name)).gguf_file == name
    assert resolve(str(tmp_path)).gguf_file == "a.gguf"
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputRefused, match=r"2 GGUF files; name one of them: a\.gguf, c\.gguf"):
        resolve(str(tmp_path))


def test_names_of_dull_folders_and_hub_snapshots(tmp_path):
    for folder, name in (
        (tmp_path / "bert-x" / "model", "bert-x-model"),
        (tmp_path / "models--org--nice" / "snapshots" / ("0" * 40), "nice"),
        (tmp_path / "evil\n[red]<b>`name`", "evil-red-b-name"),
    ):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert resolve(str(folder)).name == name


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("", UsageError, "no model given"),
        ("./nowhere", InputRefused, "no such file"),
        ("/nowhere/at/all", InputRefused, "no such file"),
        ("model.pt", InputRefused, "no such file"),
        ("a/b/c", UsageError, "neither a file, a folder nor a hub id"),
        ("../../no/such", InputRefused, "no such file"),
        ("org/na me", UsageError, "neither"),
        ("smollm2-135n!", UsageError, "did you mean smollm2-135m"),
    ],
)
def test_what_cannot_be_a_model_is_one_clear_line(reference, error, says):
    with pytest.raises(error, match=says) as caught:
        resolve(reference)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_folders_and_files_that_are_no_model(tmp_path):
    with pytest.raises(InputRefused, match=r"has no config\.json"):
        resolve(str(tmp_path))
    for content, says in (
        (b"PK\x03\x04 and more", "is corrupt: its archive has no end, so it was cut short; download or save"),
        (b"", "is empty; download it again"),
        (b"just words\n", "is a text file, not a model; give the weight file"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is an image, a sound or a document, not a model"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "is an image, a sound or a document, not a model"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "is an image, a sound or a document, not a model"),
        (b"<!DOCTYPE html><html>", "is a web page, not a model; the download needs a login"),
        (bytes(range(256)), "is of no known kind; known: torch files"),
    ):
        (tmp_path / "model.pt").write_bytes(content)
        with pytest.raises(InputRefused, match=says) as caught:
            resolve(str(tmp_path / "model.pt"))
        assert str(caught.value).startswith(repr(str(tmp_path / "model.pt")))
    with pytest.raises(InputRefused, match=r"has no config\.json.*; name one of its files: model\.pt"):
        resolve(str(tmp_path))


def test_special_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")  # opening it for reading would wait for a writer for ever
    for path in (tmp_path / "pipe.pt", "/dev/zero"):
        with pytest.raises(InputRefused, match="is not a regular file"):
            resolve(str(path))


def test_a_weights_file_belongs_to_the_transformers_config_beside_it(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "step-9.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    np.save(tmp_path / "array.npy", np.ones(3))
    files = ("x.safetensors", "step-9.pt", "pytorch_model.bin", "array.npy")
    for settings in (None, "{}", '{"learning_rate": 0.1}', "[]"):
        if settings is not None:
            (tmp_path / "config.json").write_text(settings)
        found = [resolve(str(tmp_path / file)) for file in files]
        assert [(source.kind, source.path) for source in found] == [("file", tmp_path / file) for file in files]
        assert [source.name for source in found][:2] == ["x", "step-9"]
        assert found[2].name == f"{safe_name(tmp_path.name)}-pytorch_model", "a dull name takes its folder's"
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    found = [resolve(str(tmp_path / file)) for file in files]
    assert [source.kind for source in found] == ["folder"] * 3 + ["file"]
    assert [source.weights_file for source in found[:3]] == list(files[:3])
    assert found[1].name == f"{safe_name(tmp_path.name)}-step-9"
    assert found[2].name == safe_name(tmp_path.name)


@given(st.text(max_size=30))
def test_resolve_either_answers_or_raises_our_errors(text):
    with contextlib.suppress(UsageError, InputRefused):
        source = resolve(text)
        assert source.name == safe_name(source.name)


def test_resolving_and_listing_need_no_torch():
    code = (
        "import sys\n"
        "from cohomcli.models import folder, gguf_header, layernames, memory, presets, resolve\n"
        "resolve.resolve('gpt2')\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
