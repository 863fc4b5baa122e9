"""Loading: every architecture, true figures, heads only when trained, and one clear line for every broken input."""

import json
import shutil
import socket
from pathlib import Path

import huggingface_hub.constants
import pytest
import tinymodels
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tinymodels import DECODERS, HIDDEN, MASKED, PICO, POSITIONS, SEQ2SEQ, VOCAB

from cohomcli.assets import BUILTIN_MODELS
from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models import memory
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadOptions
from cohomcli.models.weights import fingerprint


@pytest.fixture
def folder(tmp_path):
    """A private copy of a pico GPT-2."""
    return shutil.copytree(tinymodels.saved("gpt2"), tmp_path / "model-x")


def load_folder(path: Path, **options):
    return load(resolve(str(path)), LoadOptions(**options))


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(path, says, error=InputRefused, **options):
    with pytest.raises(error, match=says) as caught:
        load_folder(path, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", list(PICO))
def test_every_architecture_loads_with_its_true_figures(name):
    loaded, truth = tinymodels.loaded(name), tinymodels.build(name)
    info = loaded.info
    layers = {"gpt_neo": 4, "albert": 4, "t5": 5, "bart": 5}.get(name, 3)
    assert (info.n_layer, info.hidden_size, info.vocab_size) == (layers, HIDDEN, VOCAB)
    assert info.n_parameters == sum(value.numel() for value in truth.parameters())
    assert info.architecture == PICO[name].model
    assert info.kind == {"causal": "decoder", "masked": "encoder", "seq2seq": "encoder-decoder"}[PICO[name].tokenizer]
    assert info.lm_head == {"causal": "causal", "masked": "masked", "seq2seq": None}[PICO[name].tokenizer]
    assert info.max_positions == (None if name == "t5" else POSITIONS)
    assert not loaded.model.training
    for key, value in truth.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value), key
    assert info.weights_sha256 == fingerprint(truth)
    assert loaded.tokenizer.pad_token is not None


@pytest.mark.parametrize("name", BUILTIN_MODELS)
def test_the_built_in_models_load(name):
    info = load(resolve(name), LoadOptions()).info
    assert (info.kind, info.lm_head) == (("decoder", "causal") if name == "tiny-gpt" else ("encoder", "masked"))


def test_the_fingerprint_sees_every_bit_name_and_shape():
    model = tinymodels.build("gpt2")
    first = fingerprint(model)
    assert first == fingerprint(tinymodels.build("gpt2"))
    with torch.no_grad():
        weight = model.transformer.h[1].mlp.c_fc.bias
        bits = weight.view(torch.int32)
        bits[0] ^= 1
        assert fingerprint(model) != first
        bits[0] ^= 1
    assert fingerprint(model) == first
    assert fingerprint(model.half()) != first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_checkpoints_are_computed_in_float32(folder, dtype):
    stored = {key: value.to(dtype) for key, value in load_file(folder / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    edit(folder, dtype=str(dtype).removeprefix("torch."))
    loaded = load_folder(folder)
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
    weight = loaded.model.transformer.h[0].mlp.c_fc.weight
    assert torch.equal(weight, stored["transformer.h.0.mlp.c_fc.weight"].float())


def test_torch_files_and_named_safetensors_files_load_the_same_weights(folder):
    expected = tinymodels.loaded("gpt2").info.weights_sha256
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "weights-v2.safetensors")
    assert load_folder(folder / "weights-v2.safetensors").info.weights_sha256 == expected
    torch.save(tensors, folder / "pytorch_model.bin")
    assert load_folder(folder).info.weights_sha256 == expected
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert load_folder(folder).info.weights_sha256 == expected


def test_shards_load_the_same_weights(tmp_path):
    model = tinymodels.build("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tinymodels.tokenizer("causal").save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert load_folder(tmp_path).info.weights_sha256 == tinymodels.loaded("llama").info.weights_sha256


def test_symlinked_files_as_in_the_hub_cache_are_fine(tmp_path):
    for file in tinymodels.saved("gpt2").iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert load_folder(tmp_path).info.weights_sha256 == tinymodels.loaded("gpt2").info.weights_sha256


class Exploit:
    """Pickled code: unpickling it writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.write_text, (self.target, "owned"))


def test_pickled_code_does_not_run(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"x": Exploit(tmp_path / "owned")}, folder / "pytorch_model.bin")
    refused(folder, "holds no tensors; give the file that holds the model's weights")
    assert not (tmp_path / "owned").exists()
    beside = {**tinymodels.build("gpt2").state_dict(), "x": Exploit(tmp_path / "owned")}
    torch.save(beside, folder / "pytorch_model.bin")
    assert load_folder(folder).info.weights_sha256 == tinymodels.loaded("gpt2").info.weights_sha256
    assert not (tmp_path / "owned").exists()


def test_a_cut_torch_file(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    refused(folder, "is corrupt: its archive has no end, so it was cut short; download or save the model again")
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
    refused(folder, "is a text file, not a model")


def test_missing_unexpected_and_mismatched_weights_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    broken = {key: value for key, value in tensors.items() if "h.1.mlp" not in key}
    save_file(broken, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "4 missing .*transformer.h.1.mlp.c_fc.bias")
    save_file(tensors | {"transformer.h.3.x": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "1 unexpected .*transformer.h.3.x")
    tensors["transformer.h.0.mlp.c_fc.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "1 of another shape .*transformer.h.0.mlp.c_fc.bias")


@pytest.mark.parametrize("n_layer", [2, 4])
def test_a_configuration_with_another_layer_count_is_refused(folder, n_layer):
    edit(folder, n_layer=n_layer)
    refused(folder, "do not match")


def test_leftovers_of_older_checkpoints_are_harmless(folder):
    tensors = load_file(folder / "model.safetensors")
    for key in ("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"):
        tensors[key] = torch.ones(1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert load_folder(folder).info.weights_sha256 == tinymodels.loaded("gpt2").info.weights_sha256


def save_as(model, folder, kind):
    model.save_pretrained(folder)
    tinymodels.tokenizer(kind).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_checkpoint_without_head_has_no_head(name, tmp_path):
    whole = tinymodels.build(name)
    bare = save_as(whole.base_model, tmp_path / "bare", PICO[name].tokenizer)
    info = load_folder(bare).info
    assert info.lm_head is None
    assert info.kind == tinymodels.loaded(name).info.kind
    assert info.n_parameters == sum(value.numel() for value in whole.base_model.parameters())


def test_a_head_that_was_lost_is_dropped_not_made_up(tmp_path):
    whole = tinymodels.build("bert")
    folder = save_as(whole, tmp_path / "m", "masked")
    tensors = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in tensors.items() if not key.startswith("cls.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    info = load_folder(folder).info
    assert (info.architecture, info.lm_head) == ("BertModel", None)
    assert info.n_parameters == sum(value.numel() for value in whole.bert.parameters())
    assert info.weights_sha256 == load_folder(folder).info.weights_sha256, "a random pooler would differ"


def test_an_untied_causal_head_that_is_missing_is_dropped(tmp_path):
    folder = tinymodels.save("llama", tmp_path / "m", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    info = load_folder(folder).info
    assert (info.architecture, info.lm_head, info.kind) == ("LlamaModel", None, "decoder")


def test_a_classifier_loads_as_its_encoder(tmp_path):
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(tinymodels.build("bert").config)
    info = load_folder(save_as(model, tmp_path / "m", "masked")).info
    assert (info.architecture, info.kind, info.lm_head) == ("BertModel", "encoder", None)
    assert info.n_parameters == sum(value.numel() for value in model.bert.parameters()), "the pooler was trained"


def test_an_encoder_only_t5_and_a_decoding_bert_are_told_apart_by_running(tmp_path):
    config = tinymodels.build("t5").config
    torch.manual_seed(0)
    info = load_folder(save_as(hf.T5EncoderModel(config), tmp_path / "t5", "seq2seq")).info
    assert (info.kind, info.n_layer, info.lm_head) == ("encoder", 2, None)
    config = tinymodels.build("bert").config
    config.is_decoder = True
    info = load_folder(save_as(hf.BertLMHeadModel(config), tmp_path / "bert", "masked")).info
    assert (info.kind, info.lm_head) == ("decoder", "causal")


def test_a_causal_head_on_a_stack_that_sees_later_tokens_is_not_used(tmp_path):
    torch.manual_seed(0)
    model = hf.BertLMHeadModel(tinymodels.build("bert").config)
    info = load_folder(save_as(model, tmp_path / "m", "masked")).info
    assert (info.kind, info.lm_head) == ("encoder", None), "it would only have to copy the token it can see"


def test_models_that_do_not_read_text_or_have_no_blocks_are_refused(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text, image = {**small, "vocab_size": VOCAB}, {**small, "image_size": 8, "patch_size": 4}
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=image, projection_dim=16))
    refused(save_as(clip, tmp_path / "clip", "causal"), "CLIPModel has no token embeddings; only language models")
    sound = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sound |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    whisper = hf.WhisperConfig(vocab_size=VOCAB, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **sound)
    refused(save_as(hf.WhisperModel(whisper), tmp_path / "w", "causal"), "WhisperModel cannot be run on text: .*; only")
    refused(save_as(hf.ViTModel(hf.ViTConfig(**image)), tmp_path / "vit", "causal"), "only language models are read")
    xlm = hf.XLMConfig(vocab_size=VOCAB, n_words=VOCAB, emb_dim=16, n_layers=2, n_heads=2)
    refused(save_as(hf.XLMModel(xlm), tmp_path / "xlm", "masked"), "do not feed each other; the architecture is not")


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "NaN"), (float("inf"), "NaN or infinite")])
def test_non_finite_weights_are_counted_and_named(folder, value, shown):
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.2.attn.c_proj.weight"][1, :3] = value
    tensors["transformer.ln_f.bias"][0] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, f"3 {shown}.*'transformer.h.2.attn.c_proj.weight' and 1 more")


def test_no_tokenizer_and_broken_tokenizers(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    refused(folder, "tokenizer of .* cannot be read")
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer; put its tokenizer.json")


def test_a_tokenizer_of_another_model_is_refused_when_it_is_used(folder):
    from cohomcli.models.activations import collect
    from cohomcli.models.spec import ActivationOptions

    shutil.rmtree(folder)
    tinymodels.save("gpt2", folder, vocab_size=60)
    with pytest.raises(InputRefused, match="knows only 60 tokens; the tokenizer belongs to another model"):
        collect(load_folder(folder), ["To be"], ActivationOptions())


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layer": 10**9},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"architectures": ["LlamaForCausalLM"]},
        {"n_layer": "three"},
        {"n_layer": 0},
        {"n_head": 7},
        {"n_embd": -1},
        {"activation_function": "no_such"},
        {"model_type": 7},
        {"vocab_size": None},
    ],
)
def test_impossible_configurations(folder, changes):
    edit(folder, **changes)
    with pytest.raises((InputRefused, AnalysisIncomplete)) as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("named", [[7], "x", ["GPT2Config"], [], None])
def test_a_named_class_that_is_no_model_gives_the_bare_one(folder, named):
    edit(folder, architectures=named)
    info = load_folder(folder).info
    assert (info.architecture, info.lm_head, info.kind) == ("GPT2Model", None, "decoder")


def test_a_decoder_of_a_billion_layers_is_refused_before_it_is_built(tmp_path):
    folder = tinymodels.save("bart", tmp_path / "m")
    edit(folder, decoder_layers=10**9)
    refused(folder, "claims 'decoder_layers' = 1000000000; restore")


def test_unknown_architectures(folder):
    edit(folder, model_type="from_the_future")
    refused(folder, "unknown architecture 'from_the_future'; update transformers")


CODE = """
from pathlib import Path
Path({target!r}).write_text("ran")
from transformers import GPT2Config, GPT2LMHeadModel
class MyConfig(GPT2Config):
    model_type = "mine"
class MyModel(GPT2LMHeadModel):
    config_class = MyConfig
"""


@pytest.fixture
def with_code(folder, tmp_path, monkeypatch):
    """A folder whose architecture exists only in its own Python file, which leaves a trace when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "mine.py").write_text(CODE.format(target=str(tmp_path / "trace")))
    maps = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    edit(folder, model_type="mine", architectures=["MyModel"], auto_map=maps)
    return folder


def test_code_in_a_folder_runs_only_with_the_flag(with_code, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    refused(with_code, "own Python code; read that code, then allow it with --trust-remote-code")
    assert not (tmp_path / "trace").exists()
    loaded = load_folder(with_code, trust_remote_code=True)
    assert (tmp_path / "trace").exists()
    assert (loaded.info.architecture, loaded.info.lm_head, loaded.info.kind) == ("MyModel", "causal", "decoder")
    assert loaded.info.trust_remote_code


def test_a_torch_file_for_code_in_a_folder_is_read_inertly(with_code, tmp_path):
    (with_code / "model.safetensors").unlink()
    evil = {**tinymodels.build("gpt2").state_dict(), "evil": Exploit(tmp_path / "owned")}
    torch.save(evil, with_code / "pytorch_model.bin")
    loaded = load_folder(with_code, trust_remote_code=True)
    assert (loaded.info.architecture, loaded.info.lm_head) == ("MyModel", "causal")
    assert loaded.info.weights_sha256 == tinymodels.loaded("gpt2").info.weights_sha256
    assert not (tmp_path / "owned").exists()


def test_code_is_not_taken_from_elsewhere_even_with_the_flag(with_code):
    edit(with_code, auto_map={"AutoConfig": "other/repo--mine.MyConfig"})
    refused(with_code, "code from another repository", trust_remote_code=True)


def test_native_architectures_ignore_code_without_the_flag(with_code, tmp_path):
    edit(with_code, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    assert load_folder(with_code).info.weights_sha256 == tinymodels.loaded("gpt2").info.weights_sha256
    assert not (tmp_path / "trace").exists()


def test_a_configuration_cannot_choose_a_kernel(folder, monkeypatch):
    called = []
    for name in ("lazy_import_flash_attention", "is_kernel"):
        original = getattr(hf.modeling_utils, name)
        monkeypatch.setattr(
            hf.modeling_utils,
            name,
            lambda value, *rest, f=original, **kw: called.append(value) or f(value, *rest, **kw),
        )
    edit(folder, _attn_implementation="evil/kernel", attn_implementation="evil/kernel")
    assert load_folder(folder).model.config._attn_implementation in ("sdpa", "eager")
    assert not any("evil" in str(value) for value in called)


def test_loading_a_folder_opens_no_connection_and_says_nothing(folder, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        pytest.fail("network used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    edit(folder, bos_token_id=10**6)  # transformers warns about such ids
    assert load_folder(folder).info.n_layer == 3
    assert capfd.readouterr() == ("", "")


def test_a_model_that_does_not_fit_is_refused_with_numbers(folder, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    refused(folder, "needs about 0 MiB in float32 and 0 MiB is free", error=AnalysisIncomplete)
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**34)
    edit(folder, n_embd=2**16)  # the file is small: the claim alone would make transformers allocate it
    refused(folder, "needs about .* GiB in float32 and 16.0 GiB is free", error=AnalysisIncomplete)


@pytest.mark.parametrize("device", ["cuda", "mps", "cuda:7"])
def test_devices_this_machine_does_not_have(folder, device):
    if (device.startswith("cuda") and torch.cuda.is_available()) or torch.backends.mps.is_available():
        pytest.skip(f"this machine has {device}")
    refused(folder, f"this machine has no device '{device}'; use --device cpu", error=UsageError, device=device)


@pytest.mark.parametrize("device", ["gpu", "cpu cpu", "meta", ""])
def test_devices_that_do_not_exist(folder, device):
    refused(folder, "unknown device", error=UsageError, device=device)


def test_the_lists_of_pico_models_cover_what_is_promised():
    assert set(DECODERS) >= {
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "opt",
        "opt-350m",
        "llama",
        "mistral",
        "qwen2",
        "gemma2",
        "phi",
    }
    assert set(MASKED) == {"bert", "roberta", "distilbert", "electra", "albert"}
    assert set(SEQ2SEQ) == {"t5", "bart"}
