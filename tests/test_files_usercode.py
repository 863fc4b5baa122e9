"""The user's own architecture, and files the user trusts: what they may do, and that it is recorded."""

import os
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from filemodels import WAYS, plain_state, small_cnn
from torch import nn

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.files import trusted_child
from cohomcli.models.files.assign import best_prefix, fill
from cohomcli.models.files.opened import FileOptions, open_model_file
from cohomcli.models.files.trusted import TrustLimits, read_trusted

CODE = """
from dataclasses import dataclass
import torch
from torch import nn
from sibling import WIDTH

@dataclass
class Sizes:
    inner: int = 3

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(WIDTH, Sizes().inner)
        self.b = nn.Linear(3, 3)
        self.c = nn.Linear(3, 3)
        self.c.weight = self.b.weight
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, x):
        return self.c(self.b(self.a(x))) + self.shift

def factory():
    return Net()

def broken():
    raise ValueError("no such luck\\nsecond line")

def leaves():
    raise SystemExit(3)

def nothing():
    return 5
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "sibling.py").write_text("WIDTH = 2\n")
    (tmp_path / "net.py").write_text(CODE)
    yield tmp_path / "net.py"
    sys.modules.pop("sibling", None)


def state(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shared = torch.randn(3, 3, dtype=dtype)
    shapes = {"a.weight": (3, 2), "a.bias": (3,), "b.bias": (3,), "c.bias": (3,), "shift": (3,)}
    return {**{k: torch.randn(s, dtype=dtype) for k, s in shapes.items()}, "b.weight": shared, "c.weight": shared}


def build(content: object, code: Path, name: str = "factory") -> nn.Module:
    torch.save(content, code.parent / "w")
    opened = open_model_file(code.parent / "w", FileOptions(model_code=f"{code}:{name}"))
    assert opened.built_from == "model-code"
    assert opened.model is not None
    return opened.model


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.net."])
def test_the_users_model_is_built_and_filled(prefix: str, code: Path) -> None:
    model = build({"state_dict": {f"{prefix}{name}": value for name, value in state().items()}}, code)
    assert not model.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state().items())
    assert model.c.weight is model.b.weight
    assert str(code.parent) not in sys.path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_stored_element_types_are_kept(dtype: torch.dtype, code: Path) -> None:
    assert {value.dtype for value in build(state(dtype), code).state_dict().values()} == {dtype}


def test_one_name_of_tied_weights_is_enough(code: Path) -> None:
    for lost in ("b.weight", "c.weight"):
        given = {name: value for name, value in state().items() if name != lost}
        model = build(given, code)
        assert torch.equal(model.b.weight, state()["b.weight"])
        assert model.c.weight is model.b.weight


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"a.weight": None}, r"1 missing \('a.weight'\)"),
        ({"zz": torch.ones(1)}, r"1 left over \('zz'\)"),
        ({"a.bias": torch.ones(4)}, r"1 of another shape \('a.bias'\)"),
        ({"c.weight": torch.ones(3, 3)}, "different values for tied"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, torch.Tensor | None], why: str, code: Path) -> None:
    given = {name: value for name, value in {**state(), **change}.items() if value is not None}
    with pytest.raises(InputRefused, match=why):
        build(given, code)


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        ("broken", InputRefused, r"ValueError: no such luck"),
        ("leaves", InputRefused, "SystemExit"),
        ("nothing", InputRefused, "returned int"),
        ("facotry", UsageError, "did you mean factory"),
    ],
)
def test_code_that_fails_is_one_line(name: str, error: type[Exception], why: str, code: Path) -> None:
    with pytest.raises(error, match=why) as caught:
        build(state(), code, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["net.py", "net.txt:factory", "missing.py:factory", ":factory", "net.py:not a name"])
def test_a_wrong_model_code_option_is_a_usage_error(text: str, code: Path) -> None:
    torch.save(state(), code.parent / "w")
    with pytest.raises(UsageError):
        open_model_file(code.parent / "w", FileOptions(model_code=str(code.parent / text) if text[0] != ":" else text))


def test_a_file_that_does_not_import_is_one_line(code: Path) -> None:
    for content in ("1/0", "def f(:", "raise SystemExit"):
        code.write_text(content)
        with pytest.raises(InputRefused, match="the model code"):
            build(state(), code)


def test_the_best_prefix_is_the_shortest_of_the_best() -> None:
    assert best_prefix(["m.a", "m.b", "x"], {"a", "b"}) == "m."
    assert best_prefix(["a", "b"], {"a", "b"}) == ""
    assert best_prefix(["p.q.a", "p.q.b"], {"a", "b"}) == "p.q."
    assert best_prefix(["p.a"], {"zz"}) == ""


def test_filling_keeps_bits_that_arithmetic_would_not() -> None:
    model = nn.Linear(2, 1)
    odd = torch.tensor([[0x7FC00001, -0x80000000]], dtype=torch.int32).view(torch.float32)  # a NaN's payload, and -0.0
    fill(model, {"weight": odd, "bias": torch.zeros(1)}, "m")
    assert torch.equal(model.weight.view(torch.int32), odd.view(torch.int32))


SEQUENCES = {
    "mlp": (
        nn.Sequential(nn.Linear(4, 8), nn.GELU("tanh"), nn.LayerNorm(8, eps=1e-3), nn.Linear(8, 2, bias=False)),
        (3, 4),
    ),
    "cnn": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1, groups=1, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.3),
            nn.Sequential(nn.Conv2d(4, 4, 3, padding="same", dilation=2, padding_mode="reflect"), nn.PReLU()),
            nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Dropout(0.5), nn.Softmax(dim=-1),
        ),
        (2, 1, 12, 12),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_pickled_sequence_of_torch_layers_runs(name: str, tmp_path: Path) -> None:
    model, shape = SEQUENCES[name]
    torch.manual_seed(3)
    model.train()(torch.randn(shape))
    torch.save(model.eval(), tmp_path / "w")
    opened = open_model_file(tmp_path / "w")
    assert opened.built_from == "torch.nn"
    x = torch.randn(shape)
    assert torch.equal(opened.model(x), model(x))


def test_layers_with_hostile_sizes_are_refused_without_memory(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].in_features = 10**9
    torch.save(model, tmp_path / "w")
    with pytest.raises(InputRefused, match="another shape"):
        open_model_file(tmp_path / "w")


def test_a_class_of_the_users_own_is_only_weights(tmp_path: Path) -> None:
    WAYS["whole-module"](*small_cnn(), tmp_path / "w")
    opened = open_model_file(tmp_path / "w")
    assert opened.model is None
    assert opened.file.tensors
    assert "--model-code" in opened.hint


def loads(expression: str, tmp_path: Path) -> Path:
    """A file whose loading evaluates `expression`."""
    body = hostile.call(hostile.glob("builtins.eval"), hostile.text(expression))
    (tmp_path / "w").write_bytes(hostile.torch_zip(hostile.program(body)))
    return tmp_path / "w"


def test_a_trusted_file_runs_in_a_child_without_secrets_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    expression = f"""[
        t := __import__('torch'), o := __import__('os'), open({str(tmp_path / "canary")!r}, 'w').close(),
        {{'w': t.tensor([1.0, 2.0]), 'sparse': t.eye(3).to_sparse(), 'token': t.tensor(['HF_TOKEN' in o.environ]),
          'pid': t.tensor(o.getpid())}}][-1]"""
    file = read_trusted(loads(expression, tmp_path))
    assert (tmp_path / "canary").exists()
    assert torch.equal(file.tensors["w"], torch.tensor([1.0, 2.0]))
    assert torch.equal(file.tensors["sparse"], torch.eye(3))
    assert not file.tensors["token"].item()
    assert file.tensors["pid"].item() != os.getpid()
    assert file.trusted is not None
    assert file.trusted["loader"].startswith("torch.load")
    assert isinstance(file.trusted["no_network"], bool)
    assert any("--trust" in note for note in file.notes)


def test_trust_gives_the_tensors_of_a_whole_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    model, inputs = small_cnn()
    WAYS["whole-module"](model, inputs, tmp_path / "w")
    opened = open_model_file(tmp_path / "w", FileOptions(trust=True))
    wanted = plain_state(model)
    assert opened.file.tensors.keys() == wanted.keys()
    assert all(torch.equal(opened.file.tensors[name], value) for name, value in wanted.items())
    assert opened.file.tied == (("blocks.2.weight", "blocks.3.weight"),)
    assert opened.file.root_class == "filemodels.SmallCnn"
    assert opened.file.module_settings["conv"]["kernel_size"] == (3, 3)


def test_the_child_describes_arrays_nested_values_and_shared_tensors() -> None:
    shared, found = torch.ones(2), {}
    value = {"a": np.arange(3, dtype=">f4"), "n": [shared, shared], 5: "dropped", "text": "kept", "odd": object()}
    described = trusted_child.describe(value, found, 0)
    tensors = [tensor for _, tensor in found.values()]
    assert described == {
        "map": {"a": {"tensor": 0}, "n": {"map": {"0": {"tensor": 1}, "1": {"tensor": 1}}}, "text": "kept"}
    }
    assert torch.equal(tensors[0], torch.tensor([0.0, 1.0, 2.0]))
    assert torch.equal(tensors[1], shared)


@pytest.mark.parametrize(
    ("expression", "why", "cpu_seconds"),
    [
        ("bytearray(2**40)", "MemoryError", 60),
        ("{}", "no tensors", 60),
        ("[i for i in iter(int, 1)]", "stopped by SIG(XCPU|KILL)", 1),
    ],
)
def test_a_trusted_file_that_misbehaves_is_one_line(
    expression: str, why: str, cpu_seconds: int, tmp_path: Path
) -> None:
    with pytest.raises(InputRefused, match=why) as caught:
        read_trusted(loads(expression, tmp_path), trust=TrustLimits(cpu_seconds=cpu_seconds))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", ["safetensors", "torchscript", "exported"])
def test_kinds_that_need_no_trust_are_read_inertly_anyway(way: str, tmp_path: Path) -> None:
    WAYS[way](*small_cnn(), tmp_path / "w")
    assert read_trusted(tmp_path / "w").trusted is None
