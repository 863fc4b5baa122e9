"""One model saved in every way gives the same weights, bit for bit, and its kind is told by its bytes."""

import gzip
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from filemodels import WAYS, Logits, pico_gpt2, plain_state, small_cnn
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.files.read import read_model_file
from cohomcli.models.files.sniff import sniff

KINDS = {
    "state-dict": "torch-zip", "nested-checkpoint": "torch-zip", "whole-module": "torch-zip", "legacy": "torch-legacy",
    "torchscript": "torchscript", "exported": "exported", "safetensors": "safetensors", "plain-pickle": "pickle",
    "numpy-pickle": "pickle",
}  # fmt: skip


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal type, shape and bytes (NaN payloads and signed zeros included)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not same_bits(found[name], wanted[name])] == []


@pytest.mark.parametrize("way", WAYS)
def test_the_cnn_is_the_same_in_every_way(way: str, tmp_path: Path) -> None:
    model, inputs = small_cnn()
    path = tmp_path / "renamed.dat"
    WAYS[way](model, inputs, path)
    file = read_model_file(path)
    wanted = plain_state(model)
    if way == "torchscript":  # does not say that a buffer was not persistent
        wanted["fleeting"] = model.fleeting
    assert file.kind == KINDS[way] == sniff(path).kind
    assert_same(file.tensors, wanted)


@pytest.mark.parametrize("way", WAYS)
def test_gpt2_is_the_same_in_every_way(way: str, tmp_path: Path) -> None:
    model, inputs = pico_gpt2()
    path = tmp_path / "model.bin"
    wrapped = way in ("torchscript", "exported")
    WAYS[way](Logits(model) if wrapped else model, inputs, path)
    wanted = plain_state(model)
    found = {name.removeprefix("inner."): value for name, value in read_model_file(path).tensors.items()}
    if way == "torchscript":  # a trace keeps one name of a tied tensor and the masks and position counters
        wanted = {name: value for name, value in wanted.items() if name in found or name != "lm_head.weight"}
        found = {name: value for name, value in found.items() if name in wanted}
    assert_same(found, wanted)


@pytest.mark.parametrize("way", ["state-dict", "nested-checkpoint", "whole-module", "legacy", "exported"])
def test_tied_weights_stay_one_tensor(way: str, tmp_path: Path) -> None:
    model, inputs = small_cnn()
    WAYS[way](model, inputs, tmp_path / "m")
    file = read_model_file(tmp_path / "m")
    assert file.tied == (("blocks.2.weight", "blocks.3.weight"),)
    assert file.tensors["blocks.2.weight"].data_ptr() == file.tensors["blocks.3.weight"].data_ptr()
    assert file.n_parameters == sum(value.numel() for value in plain_state(model).values()) - 36


@pytest.mark.parametrize("way", ["whole-module", "torchscript", "exported"])
def test_the_module_tree_is_read(way: str, tmp_path: Path) -> None:
    model, inputs = small_cnn()
    WAYS[way](model, inputs, tmp_path / "m")
    tree = read_model_file(tmp_path / "m").module_tree
    wanted = {name: type(module).__name__ for name, module in model.named_modules()}
    assert {name: path.rpartition(".")[2] for name, path in tree.items()} == wanted
    assert tree["conv"] == "torch.nn.modules.conv.Conv2d"


def test_a_pickled_module_keeps_its_settings_and_its_fleeting_buffers_apart(tmp_path: Path) -> None:
    model, inputs = small_cnn()
    WAYS["whole-module"](model, inputs, tmp_path / "m")
    file = read_model_file(tmp_path / "m")
    assert file.module_settings["conv"]["kernel_size"] == (3, 3)
    assert file.module_settings["norm"]["eps"] == 1e-5
    assert list(file.extras) == ["fleeting"]
    assert file.root_class == "filemodels.SmallCnn"


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
     torch.complex32, torch.int8, torch.uint16, torch.int64, torch.bool],
)  # fmt: skip
def test_every_element_type_is_bit_exact(dtype: torch.dtype, legacy: bool, tmp_path: Path) -> None:
    raw = torch.arange(256, dtype=torch.uint8)
    value = raw % 2 == 0 if dtype is torch.bool else raw.view(dtype).reshape(4, -1)
    state = {"a": value, "slice": value.view(-1)[3:7], "empty": value.view(-1)[:0], "scalar": value.view(-1)[5]}
    torch.save(state, tmp_path / "m", _use_new_zipfile_serialization=not legacy)
    assert_same(read_model_file(tmp_path / "m").tensors, state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    model, _ = small_cnn()
    for number, target in enumerate((model, model.state_dict())):
        for legacy in (False, True):
            path = tmp_path / f"{number}{legacy}"
            torch.save(target, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
            assert_same(read_model_file(path).tensors, plain_state(model))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_numpy_arrays_in_every_protocol_and_order(protocol: int, tmp_path: Path) -> None:
    arrays = {
        "c": np.arange(12, dtype="<f4").reshape(3, 4), "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(5, dtype=">i4"), "half": np.float16([1.5, -0.0]), "none": np.zeros((0, 3), "u1"),
    }  # fmt: skip
    (tmp_path / "m").write_bytes(pickle.dumps(arrays, protocol))
    found = read_model_file(tmp_path / "m").tensors
    assert_same(found, {k: torch.from_numpy(v.astype(v.dtype.newbyteorder("="), order="C")) for k, v in arrays.items()})


def test_numpy_files_are_read(tmp_path: Path) -> None:
    arrays = {"w": np.random.default_rng(0).normal(size=(3, 4)), "b": np.zeros(1000, "f4")}
    np.savez_compressed(tmp_path / "z.bin", **arrays)
    np.save(tmp_path / "one", np.asfortranarray(arrays["w"]))
    assert_same(read_model_file(tmp_path / "z.bin.npz").tensors, {k: torch.from_numpy(v) for k, v in arrays.items()})
    assert_same(read_model_file(tmp_path / "one.npy").tensors, {"array": torch.from_numpy(arrays["w"])})


def test_big_endian_archives_are_swapped(tmp_path: Path) -> None:
    value = torch.randn(5), torch.randn(3, dtype=torch.complex64)
    buffer = io.BytesIO()
    torch.save({"r": value[0], "c": value[1]}, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(tmp_path / "m", "w") as swapped:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            if "/data/" in name:
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            swapped.writestr(name, data)
    assert_same(read_model_file(tmp_path / "m").tensors, {"r": value[0], "c": value[1]})


def test_files_without_checksums_are_read_and_say_so(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "m")
    finally:
        torch.serialization.set_crc32_options(True)
    assert any("without checksums" in note for note in read_model_file(tmp_path / "m").notes)


def test_a_scripted_module_with_functions_and_a_repeated_class_is_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    torch.jit.script(model).save(str(tmp_path / "m"))
    file = read_model_file(tmp_path / "m")
    assert_same(file.tensors, plain_state(model))
    assert file.module_tree["2"] == "torch.nn.modules.linear.Linear"


def test_an_exported_program_keeps_its_graph_samples_and_shared_storages(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.randn(10)
            self.register_buffer("head", base[:4])
            self.register_buffer("tail", base[4:8])
            self.low = nn.Parameter(torch.randn(4).to(torch.float8_e4m3fn), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.head + self.tail + self.low.float()

    model, x = Shared(), torch.randn(3, 4)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
    file = read_model_file(tmp_path / "m.pt2")
    assert_same(file.tensors, plain_state(model))
    assert same_bits(file.sample_inputs[0], x)
    assert file.graph is not None
    assert file.graph["graph_module"]["graph"]["nodes"]
    assert file.tensors["head"].untyped_storage().data_ptr() == file.tensors["tail"].untyped_storage().data_ptr()


@pytest.mark.parametrize(
    ("content", "kind", "advice"),
    [
        (b"", "empty", "download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "lfs-pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "html", "login"),
        (b'{"error": "Repository not found"}', "json", "weight file"),
        (b"Entry not found", "text", "weight file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "hdf5", "safetensors"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "onnx", "PyTorch model"),
        (gzip.compress(b"x" * 100, mtime=0), "gzip", "decompress"),
        (b"GGUF" + bytes(20), "gguf", "GGUF"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "torch-tar", "old torch"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(20), "tflite", "PyTorch"),
        (bytes(range(256)), "unknown", "known"),
    ],
)
def test_other_files_are_named_with_advice(content: bytes, kind: str, advice: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert sniff(path).kind == kind
    with pytest.raises(InputRefused) as caught:
        read_model_file(path)
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("names", "kind"), [(["config.json", "model.weights.h5"], "keras"), (["a.txt"], "zip")])
def test_other_archives_are_named(names: list[str], kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m", "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    assert sniff(tmp_path / "m").kind == kind


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputRefused):
            read_model_file(path)


@pytest.mark.parametrize(
    "value", [{"a": 1}, [], "text", {"w": torch.eye(3).to_sparse()}, {"w": torch.empty(3, device="meta")}]
)
def test_a_file_without_readable_tensors_says_so(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "m")
    with pytest.raises(InputRefused, match=r"no (readable )?tensors"):
        read_model_file(tmp_path / "m")


def test_unreadable_tensors_are_named_and_the_others_read(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({"w": torch.ones(2), "s": torch.eye(3).to_sparse(), "q": quantised}, tmp_path / "m")
    file = read_model_file(tmp_path / "m")
    assert list(file.tensors) == ["w"]
    assert file.unread == {"s": "a sparse tensor", "q": "a quantised tensor"}
