"""Model folders as hostile input: every broken file is one clear line, and no name leads outside the folder."""

import json
import os
import shutil

import gguf
import pytest
import tinymodels
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cohomcli.errors import InputRefused
from cohomcli.models.folder import read_config, read_folder
from cohomcli.models.gguf_header import TENSOR_TYPES, read_gguf_header
from cohomcli.models.safetensors_header import read_header


@pytest.fixture
def folder(tmp_path):
    """A private copy of a pico model's folder."""
    return shutil.copytree(tinymodels.saved("gpt2"), tmp_path / "model")


def refusal(read, path):
    """The line with which `read(path)` is refused, or None when it is not; any other error is a failure."""
    try:
        read(path)
    except InputRefused as error:
        return str(error)
    return None


def test_headers_agree_with_the_reference_reader(folder):
    stored = load_file(folder / "model.safetensors")
    entries = read_header(folder / "model.safetensors")
    assert {name: entry.shape for name, entry in entries.items()} == {k: tuple(v.shape) for k, v in stored.items()}
    assert {entry.dtype for entry in entries.values()} == {"F32"}
    assert sum(entry.n_bytes for entry in entries.values()) == sum(value.nbytes for value in stored.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_headers_of_every_element_type(tmp_path, dtype):
    value = torch.ones(3, 5).to(dtype)
    save_file({"x": value, "empty": torch.zeros(0, 4), "scalar": torch.tensor(1.0)}, tmp_path / "x.safetensors")
    entries = read_header(tmp_path / "x.safetensors")
    assert (entries["x"].shape, entries["x"].n_bytes) == ((3, 5), value.nbytes)
    assert (entries["empty"].n_elements, entries["scalar"].n_elements) == (0, 1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_cut_safetensors_file_is_refused_wherever_it_is_cut(folder, data):
    whole = (tinymodels.saved("gpt2") / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InputRefused, match="corrupt"):
        read_folder(folder)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_garbage_is_never_a_header(tmp_path, body, length):
    for content in (body, length.to_bytes(8, "little") + body, len(body).to_bytes(8, "little") + body):
        (tmp_path / "x.safetensors").write_bytes(content)
        if content[8:] != b"{}":
            with pytest.raises(InputRefused):
                read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": "xx", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "X99", "shape": [2], "data_offsets": [0, 8]},
        [],
    ],
)
def test_header_entries_that_lie(tmp_path, entry):
    header = json.dumps({"w\x1b[31m": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(InputRefused) as caught:
        read_header(tmp_path / "x.safetensors")
    assert "\x1b" not in str(caught.value)


def test_settings_that_pick_code_are_dropped_at_every_depth(folder):
    hostile = {
        "model_type": "gpt2", "_attn_implementation": "evil/kernel", "experts_implementation": "evil/kernel",
        "text_config": {"_attn_implementation": {"": "evil/kernel"}, "n_layer": 2},
        "transformers_weights": "../../x.safetensors", "configuration_files": ["../config.4.json"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(hostile))
    assert read_config(folder) == {"model_type": "gpt2", "text_config": {"n_layer": 2}}


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", '{"a":' * 900 + "1" + "}" * 900, "[" * 10**5, ""])
def test_a_config_that_is_no_object(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputRefused) as caught:
        read_config(folder)
    assert "\n" not in str(caught.value)


def index(folder, weight_map, name="model.safetensors.index.json", **extra):
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map, **extra}))


def test_shards_are_read_in_order(folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    (folder / "model.safetensors").unlink()
    index(folder, {key: file for file, keys in parts.items() for key in keys})
    found = read_folder(folder)
    assert [file.name for file in found.weights] == sorted(parts)
    assert set(found.tensors()) == set(names)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputRefused, match=r"shard .*00002-of-00002.* is missing"):
        read_folder(folder)


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", "..", "x.bin"]
)
def test_a_shard_index_cannot_point_elsewhere(folder, name):
    (folder / "model.safetensors").unlink()
    index(folder, {"w": name})
    with pytest.raises(InputRefused, match="points outside its folder"):
        read_folder(folder)


@pytest.mark.parametrize("content", [{"weight_map": {}}, {"weight_map": []}, [], {"weight_map": {"a": "b"}}])
def test_a_broken_shard_index(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(InputRefused, match="not a shard index"):
        read_folder(folder)


def test_weights_of_other_kinds_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputRefused, match=r"no weights; expected model\.safetensors"):
        read_folder(folder)
    (folder / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(InputRefused, match=r"weights only in 'tf_model.h5'; convert"):
        read_folder(folder)
    torch.save({"w": torch.ones(1)}, folder / "best.pth")
    with pytest.raises(InputRefused, match=r"weights only under other names; name the file: .*best\.pth"):
        read_folder(folder)
    assert read_folder(folder, "best.pth").tensors()["w"].shape == (1,)


def test_quantised_weights_and_adapters_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputRefused, match="quantised weights \\('gptq'\\)"):
        read_folder(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputRefused, match="adapter"):
        read_folder(folder)


def read_all(folder):
    """Names and data, as loading does."""
    return read_folder(folder).read_tensors()


def test_a_torch_file_is_listed_and_read_as_the_safetensors_file_is(folder):
    tensors, listed = load_file(folder / "model.safetensors"), read_folder(folder).tensors()
    (folder / "model.safetensors").unlink()
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({name: value.clone() for name, value in tensors.items()}, folder / "pytorch_model.bin", **options)
        found = read_folder(folder)
        assert not found.is_safetensors
        assert found.tensors() == listed
        assert all(torch.equal(value, tensors[name]) for name, value in found.read_tensors().items())


def test_torch_shards_are_joined_and_may_not_overlap(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index(folder, {name: f"p-{i % 2}.bin" for i, name in enumerate(names)}, "pytorch_model.bin.index.json")
    for part in (0, 1):
        torch.save({name: tensors[name] for name in names[part::2]}, folder / f"p-{part}.bin")
    assert read_all(folder).keys() == tensors.keys()
    torch.save({name: tensors[name] for name in names}, folder / "p-1.bin")
    with pytest.raises(InputRefused, match=f"two shards of .* hold '{names[0]}'"):
        read_all(folder)


def test_a_flipped_byte_in_a_torch_file_is_found(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    content = (folder / "pytorch_model.bin").read_bytes()
    at = content.index(tensors["transformer.h.0.mlp.c_fc.weight"].numpy().tobytes())
    (folder / "pytorch_model.bin").write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
    with pytest.raises(InputRefused, match="fails its checksum"):
        read_all(folder)
    for at in range(0, len(content), 997):
        (folder / "pytorch_model.bin").write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        line = refusal(read_all, folder)
        same = line is None and all(torch.equal(value, tensors[name]) for name, value in read_all(folder).items())
        assert same or "corrupt" in line or "refused" in line or "not a model" in line or "no known kind" in line
    for length in (3, 100, len(content) // 2, len(content) - 1):
        (folder / "pytorch_model.bin").write_bytes(content[:length])
        with pytest.raises(InputRefused, match=r"cut short|no known kind"):
            read_folder(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files(folder):
    (folder / "config.json").chmod(0)
    with pytest.raises(InputRefused, match=r"cannot read .*Permission denied"):
        read_folder(folder)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory):
    """A GGUF file with every kind of metadata and two tensors, written by the reference writer."""
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("llama.numbers", [1, 2, 3])
    writer.add_bool("llama.flag", True)
    writer.add_tensor("a", torch.ones(4, 32).numpy())
    writer.add_tensor("b", torch.ones(8).half().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_headers_agree_with_the_reference_writer(small_gguf):
    header = read_gguf_header(small_gguf)
    assert (header.architecture, header.number("block_count"), header.n_parameters) == ("llama", 3, 136)
    assert header.dtypes == ("F32", "F16")
    assert header.metadata["tokenizer.ggml.tokens"] == header.metadata["llama.numbers"] == 3
    assert header.metadata["llama.flag"] is True


def test_ggml_type_sizes_are_those_of_the_reference_package():
    for number, (name, elements, n_bytes) in TENSOR_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (elements, n_bytes)


def test_a_cut_or_mangled_gguf_is_refused(small_gguf, tmp_path):
    whole = small_gguf.read_bytes()
    tail = len(whole) - len(whole.rstrip(b"\0"))  # the padding behind the last tensor may be missing
    for length in range(0, len(whole) - max(tail, 32), 5):
        (tmp_path / "x.gguf").write_bytes(whole[:length])
        with pytest.raises(InputRefused):
            read_gguf_header(tmp_path / "x.gguf")
    for at in range(4, 600, 3):
        (tmp_path / "x.gguf").write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        assert "\n" not in (refusal(read_gguf_header, tmp_path / "x.gguf") or "")
