"""Single files through the door: one model whatever way it was saved, and only what is known about the rest."""

import hashlib
import json
import shutil
import warnings
from dataclasses import replace

import pytest
import tinymodels
import torch
import transformers as hf
from filemodels import WAYS, Logits, small_cnn
from torch import nn

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.activations import collect
from cohomcli.models.inspect import describe, describe_file
from cohomcli.models.load import load, load_any
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import ActivationOptions, LoadedModel, LoadedWeights, LoadOptions

IDS = torch.arange(5, 13).reshape(1, 8)


def save(way, model, path, inputs=(IDS,)):
    """Save `model` one way; tracing and export get it without its output class, as their users must."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        WAYS[way](Logits(model) if way in ("torchscript", "exported") else model, inputs, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The pico GPT-2 saved every way, with its tokenizer and a configuration under a name that is not found."""
    folder = tmp_path_factory.mktemp("files")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tinymodels.saved("gpt2") / file, folder)
    shutil.copy(tinymodels.saved("gpt2") / "config.json", folder / "settings.json")
    for way in WAYS:
        save(way, tinymodels.build("gpt2"), folder / f"{way}.pt")
    return folder


def load_file(path, **options):
    return load(resolve(str(path)), LoadOptions(**options))


def load_any_file(path, **options):
    return load_any(resolve(str(path)), LoadOptions(**options))


def refused(path, says, error=InputRefused, **options):
    with pytest.raises(error, match=says) as caught:
        load_file(path, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_saving_gives_the_same_model(way, files):
    truth = tinymodels.loaded("gpt2")
    loaded = load_file(files / f"{way}.pt", config_json=files / "settings.json")
    assert loaded.info.weights_sha256 == truth.info.weights_sha256
    assert (loaded.info.source, loaded.info.location) == ("file", str(files / f"{way}.pt"))
    same = ("architecture", "kind", "n_layer", "hidden_size", "vocab_size", "n_parameters", "max_positions", "lm_head")
    assert all(getattr(loaded.info, name) == getattr(truth.info, name) for name in same)
    options = ActivationOptions(perplexity=True)
    ours, theirs = collect(loaded, tinymodels.SENTENCES, options), collect(truth, tinymodels.SENTENCES, options)
    assert ours.metrics == theirs.metrics
    assert all((ours.layers[name] == states).all() for name, states in theirs.layers.items())


def test_a_pickled_transformers_model_brings_its_own_configuration(files):
    loaded = load_file(files / "whole-module.pt")
    assert loaded.info.weights_sha256 == tinymodels.loaded("gpt2").info.weights_sha256
    assert loaded.notes[0] == "the model was rebuilt from the configuration pickled with it, not by its own code"
    assert "its code was not run" in loaded.notes[1]


@pytest.mark.parametrize("way", sorted(set(WAYS) - {"whole-module"}))
def test_without_a_configuration_too_small_a_model_is_weights(way, files):
    error = refused(files / f"{way}.pt", "cannot be run on texts: these are gpt2 weights, which do not tell the number")
    assert "--config-json" in error.hint
    found = load_any_file(files / f"{way}.pt")
    if way == "exported":
        assert isinstance(found, LoadedModel)
        return
    assert isinstance(found, LoadedWeights)
    truth = tinymodels.build("gpt2").state_dict()
    assert found.info.kind == "weights"
    stored = {name.removeprefix("inner."): value for name, value in found.tensors.items()}
    assert all(torch.equal(stored.get(name, stored["transformer.wte.weight"]), value) for name, value in truth.items())
    assert "heads" in found.why
    assert "--config-json" in found.hint


def test_the_fingerprint_of_weights_is_that_of_their_names_and_bits(files):
    ways = ("state-dict", "nested-checkpoint", "legacy", "safetensors", "plain-pickle", "numpy-pickle")
    assert len({load_any_file(files / f"{way}.pt").info.weights_sha256 for way in ways}) == 1
    cnn, _ = small_cnn()
    torch.save({"model": cnn.state_dict()}, files / "cnn.pt")
    first = load_any_file(files / "cnn.pt").info.weights_sha256
    with torch.no_grad():
        cnn.conv.bias[0] += 1
    torch.save({"model": cnn.state_dict()}, files / "cnn.pt")
    assert load_any_file(files / "cnn.pt").info.weights_sha256 != first


def test_an_exported_program_runs_on_the_samples_it_came_with(files):
    found = load_any_file(files / "exported.pt")
    assert (found.info.kind, found.info.architecture) == ("module", "filemodels.Logits")
    (sample,) = found.samples
    assert torch.equal(sample, IDS)
    assert torch.equal(found.model(*found.samples), Logits(tinymodels.build("gpt2"))(IDS))
    assert (found.info.n_layer, found.info.lm_head) == (0, None)
    assert "layers are not known here" in str(found.refusal)


def test_a_program_in_half_precision_is_computed_in_float32(tmp_path):
    model, (x,) = small_cnn()
    WAYS["exported"](model.half(), (x.half(),), tmp_path / "m")
    found = load_any_file(tmp_path / "m")
    (sample,) = found.samples
    assert {value.dtype for value in (sample, *found.model.parameters(), found.model(sample))} == {torch.float32}
    assert torch.allclose(found.model(sample), model.float()(x.half().float()), atol=1e-6)
    assert "weights stored as float16 are computed in float32" in found.notes


def test_the_tokenizer_beside_a_file_or_the_one_named(files, tmp_path):
    file = shutil.copy(files / "whole-module.pt", tmp_path / "gpt.pt")
    error = refused(file, "model 'gpt' has no tokenizer; put its tokenizer.json .* beside the file, or name one")
    assert "`cohom precision` with --input or --input-shape needs none" in error.hint
    alone = load_any_file(file)
    assert (alone.tokenizer, alone.info.kind) == (None, "decoder")
    assert str(alone.refusal) == str(error)
    named = load_file(file, tokenizer=str(files))
    assert f"texts are read with the tokenizer of {str(files)!r}" in named.notes
    assert named.tokenizer("To be")["input_ids"] == tinymodels.tokenizer("causal")("To be")["input_ids"]
    assert load_file(file, tokenizer="tiny-gpt").tokenizer.vocab_size == 2048
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(file, "tokenizer of .* cannot be read")
    assert load_any_file(file).tokenizer is None, "a program can be analysed without it"
    assert load_file(file, tokenizer=str(files)).info == named.info


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("./nowhere", InputRefused, "no such file or folder"),
        ("no such name", UsageError, "neither a file, a folder nor a hub id"),
        ("whole-module.pt", UsageError, "--tokenizer .* is a file; name a folder"),
        ("org/unknown", InputRefused, "model 'org/unknown' is not in the local cache and HF_HUB_OFFLINE is set"),
    ],
)
def test_a_tokenizer_that_cannot_be_had_is_one_line(reference, error, says, files, monkeypatch):
    monkeypatch.chdir(files)
    refused("whole-module.pt", says, error, tokenizer=reference)


def test_a_folder_takes_another_tokenizer_too(files, tmp_path):
    folder = shutil.copytree(tinymodels.saved("gpt2"), tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer; put its tokenizer.json .* into the folder, or name one with --tokenizer")
    assert load_any_file(folder).refusal is not None
    assert load_file(folder, tokenizer=str(files)).info == load_any_file(folder).info


def test_what_was_assumed_is_said(tmp_path):
    torch.manual_seed(0)
    config = hf.GPT2Config(n_layer=1, n_embd=512, n_head=8, vocab_size=tinymodels.VOCAB, n_positions=32)
    torch.save(hf.GPT2LMHeadModel(config).state_dict(), tmp_path / "m.pt")
    loaded = load_file(tmp_path / "m.pt", tokenizer=str(tinymodels.saved("gpt2")))
    assert loaded.notes[0] == "the architecture was inferred from the names and shapes of the weights"
    assert any(note.startswith("assumed: 8 attention heads") for note in loaded.notes)
    assert (loaded.model.config.n_head, loaded.info.lm_head) == (8, "causal")


@pytest.mark.parametrize(
    ("name", "bare", "expected"),
    [
        ("gpt2", False, ("GPT2LMHeadModel", "causal")),
        ("gpt2", True, ("GPT2Model", None)),
        ("bert", False, ("BertForMaskedLM", "masked")),
        ("bert", True, ("BertModel", None)),
        ("llama", False, ("LlamaForCausalLM", "causal")),
        ("t5", False, ("T5ForConditionalGeneration", None)),
    ],
)
def test_a_configuration_that_names_no_class_gets_the_one_that_fits(name, bare, expected, tmp_path):
    model = tinymodels.build(name)
    model.config.architectures = None
    model.config.save_pretrained(tmp_path / "c")
    assert "architectures" not in json.loads((tmp_path / "c" / "config.json").read_text())
    inner = model.base_model if bare else model
    torch.save(inner.state_dict(), tmp_path / "m.pt")
    kind = tinymodels.PICO[name].tokenizer
    tinymodels.tokenizer(kind).save_pretrained(tmp_path)
    loaded = load_file(tmp_path / "m.pt", config_json=tmp_path / "c" / "config.json")
    assert (loaded.info.architecture, loaded.info.lm_head) == expected
    assert loaded.info.kind == tinymodels.loaded(name).info.kind


CODE = """
print("a word on stdout")
from torch import nn
def mlp():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
"""


def test_the_users_code_is_run_recorded_and_kept_off_stdout(tmp_path, capsys):
    torch.manual_seed(0)
    truth = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    torch.save(truth.state_dict(), tmp_path / "m.pt")
    (tmp_path / "net.py").write_text(CODE)
    found = load_any_file(tmp_path / "m.pt", model_code=f"{tmp_path / 'net.py'}:mlp")
    assert (found.info.kind, found.info.architecture, found.tokenizer) == ("module", "Sequential", None)
    x = torch.randn(5, 4)
    assert torch.equal(found.model(x), truth.float()(x))
    sha256 = hashlib.sha256(CODE.encode()).hexdigest()
    recorded = {"file": str(tmp_path / "net.py"), "function": "mlp", "sha256": sha256}
    assert found.info.trust == {"model_code": recorded}
    assert found.notes[0] == "the model was built by the code given with --model-code"
    assert "weights stored as float64 are computed in float32, with rounding" in found.notes
    out, err = capsys.readouterr()
    assert (out, "a word on stdout" in err) == ("", True)
    refused(tmp_path / "m.pt", "holds a Sequential, whose layers are not known", model_code=f"{tmp_path}/net.py:mlp")


def test_code_that_returns_a_transformers_model_gives_a_language_model(files, tmp_path):
    code = tmp_path / "net.py"
    code.write_text(
        "import transformers as hf\n"
        f"def gpt(): return hf.GPT2LMHeadModel(hf.GPT2Config.from_pretrained({str(tinymodels.saved('gpt2'))!r}))\n"
    )
    loaded = load_file(files / "state-dict.pt", model_code=f"{code}:gpt")
    assert loaded.info.weights_sha256 == tinymodels.loaded("gpt2").info.weights_sha256
    assert (loaded.info.kind, loaded.info.lm_head) == ("decoder", "causal")


def test_a_sequence_of_torch_layers_is_a_module(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()).half()
    torch.save(model, tmp_path / "m.pt")
    found = load_any_file(tmp_path / "m.pt")
    x = torch.randn(2, 1, 5, 5)
    assert torch.equal(found.model(x), model.float()(x))
    assert (found.info.kind, found.samples, found.info.trust) == ("module", (), {})
    assert "weights stored as float16 are computed in float32" in found.notes
    assert all(not value.requires_grad for value in found.model.parameters())


def test_permission_for_the_file_is_recorded(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "m.pt")
    found = load_any_file(tmp_path / "m.pt", trust=True)
    assert isinstance(found, LoadedWeights)
    assert found.info.trust["file"]["loader"].startswith("torch.load")
    assert any("--trust" in note for note in found.notes)
    assert not load_any_file(tmp_path / "m.pt").info.trust


def test_the_place_of_the_weights_can_be_chosen(files, tmp_path):
    state, other = tinymodels.build("gpt2").state_dict(), tinymodels.build("gpt2", seed=1).state_dict()
    torch.save({"model": state, "ema": other}, tmp_path / "m.pt")
    options = {"config_json": files / "settings.json", "tokenizer": str(files)}
    truth = tinymodels.loaded("gpt2").info.weights_sha256
    assert load_file(tmp_path / "m.pt", **options).info.weights_sha256 == truth
    chosen = load_file(tmp_path / "m.pt", weights_at="ema", **options)
    assert torch.equal(chosen.model.transformer.wte.weight, other["transformer.wte.weight"])
    refused(tmp_path / "m.pt", "holds no tensors at 'emma'; it holds some at", UsageError, weights_at="emma", **options)
    refused(files / "safetensors.pt", "kind safetensors, which holds one set", UsageError, weights_at="ema", **options)


def test_a_weights_file_in_a_folder_becomes_a_single_file_when_it_is_treated_as_one(tmp_path):
    folder = shutil.copytree(tinymodels.saved("gpt2"), tmp_path / "m")
    torch.save({"ema": tinymodels.build("gpt2", seed=1).state_dict()}, folder / "extra.pt")
    as_folder = load_file(folder / "extra.pt")
    as_file = load_file(folder / "extra.pt", weights_at="ema", config_json=folder / "config.json")
    assert (as_folder.info.source, as_file.info.source) == ("folder", "file")
    assert as_folder.info.weights_sha256 == as_file.info.weights_sha256
    assert as_folder.info.weights_sha256 != tinymodels.loaded("gpt2").info.weights_sha256


def test_options_for_files_are_said_to_be_unused_elsewhere(tmp_path):
    loaded = load_file(tinymodels.saved("gpt2"), trust=True, model_code="x.py:f")
    assert loaded.notes == ("--model-code, --trust: not used, for gpt2 is not a single file",)


def test_models_without_texts_are_modules_for_those_who_need_no_texts(tmp_path):
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    model = hf.ViTModel(config).eval()
    model.save_pretrained(tmp_path / "vit")
    found = load_any_file(tmp_path / "vit")
    assert (found.info.kind, found.info.architecture, found.tokenizer) == ("module", "ViTModel", None)
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(found.model(x)[0], model(x)[0])
    assert "only language models are read" in str(found.refusal)
    torch.save(model, tmp_path / "vit.pt")
    assert load_any_file(tmp_path / "vit.pt").info.weights_sha256 == found.info.weights_sha256


def test_weights_that_cannot_be_computed_with_are_refused(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].bias[1] = float("nan")
    torch.save(model, tmp_path / "nan.pt")
    with pytest.raises(InputRefused, match=r"model 'nan' has 1 NaN or infinite weights in '0\.bias'"):
        load_any_file(tmp_path / "nan.pt")
    (tmp_path / "net.py").write_text("import torch\ndef f(): return torch.nn.Linear(2, 2, dtype=torch.complex64)\n")
    torch.save(nn.Linear(2, 2, dtype=torch.complex64).state_dict(), tmp_path / "c.pt")
    with pytest.raises(InputRefused, match="complex weights in 'weight'; only real models"):
        load_any_file(tmp_path / "c.pt", model_code=f"{tmp_path / 'net.py'}:f")


def test_a_description_of_a_file_agrees_with_loading_it(files):
    source, options = resolve(str(files / "exported.pt")), LoadOptions(config_json=files / "settings.json")
    info = load(source, options).info
    found, planned = describe_file(source, options), describe(source, options)
    assert replace(found.model, available_bytes=0) == replace(planned, available_bytes=0)
    assert (planned.n_layer, planned.kind, planned.n_parameters) == (info.n_layer, info.kind, info.n_parameters)
    assert planned.load_bytes == 4 * info.n_parameters
    assert (found.format, found.info, found.built_from) == ("exported", info, "config-json")
    assert found.samples == (("int64", (1, 8)),)
    assert found.n_bytes == (files / "exported.pt").stat().st_size


def test_a_description_of_a_file_says_what_is_missing(files):
    torch.save({"model": {"a.w": torch.ones(2, 3), "b": torch.ones(1).half()}, "ema": {"a.w": torch.ones(2, 3)}},
               files / "odd.pt")  # fmt: skip
    found = describe_file(resolve(str(files / "odd.pt")), LoadOptions())
    assert (found.format, found.n_tensors, found.n_parameters, found.dtypes) == ("torch-zip", 2, 7, ("F16", "F32"))
    assert (found.info.architecture, found.built_from, found.model) == ("unknown", "", None)
    assert (found.place, found.others) == ("model", (("ema", 1),))
    assert "no architecture known here" in found.why
    assert "--model-code" in found.hint
    with pytest.raises(InputRefused, match="cannot be run on texts"):
        describe(resolve(str(files / "odd.pt")), LoadOptions())
