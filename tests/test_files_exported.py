"""Exported programs rebuilt from their JSON graph compute exactly what they computed when they were exported."""

import warnings
from pathlib import Path
from typing import Any

import hostile
import pytest
import tinymodels
import torch
from filemodels import Logits, small_cnn
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.files.opened import OpenedFile, open_model_file


def exported(model: nn.Module, inputs: tuple[Tensor, ...], tmp_path: Path, **options: Any) -> OpenedFile:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model.eval(), inputs, strict=False, **options)
        torch.export.save(program, tmp_path / "m.pt2")
    return open_model_file(tmp_path / "m.pt2")


class Several(nn.Module):
    """Many argument kinds: lists, optional tensors, dtypes, infinities, several outputs, a traced constant."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, 6))
        self.limit = torch.tensor(0.5)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        first, second = (x @ self.table).split(3, dim=-1)
        values, places = first.topk(2, dim=-1)
        filled = second.masked_fill(mask, float("-inf")).softmax(-1, dtype=torch.float64)
        joined = torch.cat([values, filled.float(), places.to(torch.float32)], dim=-1)
        picked = x[:, torch.tensor([0, 2])].mean(dim=[0, 1], keepdim=True)
        with torch.no_grad():
            scaled = joined * self.limit
        return scaled, picked, torch.var_mean(joined, dim=-1)[1]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_language_models_compute_the_same(name: str, tmp_path: Path) -> None:
    class NoCache(Logits):
        def forward(self, ids: Tensor) -> Tensor:
            extra = {} if name in tinymodels.MASKED else {"use_cache": False}
            return self.inner(ids, **extra)[0]

    model, ids = NoCache(tinymodels.build(name)), torch.tensor([[5, 9, 3, 17]])
    opened = exported(model, (ids,), tmp_path)
    assert opened.built_from == "exported-graph", opened.why
    assert torch.equal(opened.model(ids), model(ids))
    other = ids.flip(1)
    assert torch.equal(opened.model(other), model(other))


def test_a_convolutional_net_computes_the_same_and_keeps_its_module_paths(tmp_path: Path) -> None:
    model, (x,) = small_cnn()
    opened = exported(model, (x,), tmp_path)
    assert torch.equal(opened.model(x + 1), model(x + 1))
    stacks = [node.meta["nn_module_stack"] for node in opened.model.graph.nodes if node.op == "call_function"]
    assert ("conv", "torch.nn.modules.conv.Conv2d") in {frame for stack in stacks for frame in stack.values()}
    assert {name for name, _ in opened.model.named_parameters()} == {name for name, _ in model.named_parameters()}


def test_many_argument_kinds_and_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Several(), (torch.randn(2, 4), torch.tensor([[True, False, False]]))
    opened = exported(model, inputs, tmp_path)
    assert opened.built_from == "exported-graph", opened.why
    assert all(torch.equal(a, b) for a, b in zip(opened.model(*inputs), model(*inputs), strict=True))


def test_a_dynamic_batch_stays_dynamic(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.reshape(x.shape[0], -1)) + x.shape[0] * 2

    model = Flat()
    opened = exported(model, (torch.randn(3, 2, 3),), tmp_path, dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    assert opened.built_from == "exported-graph", opened.why
    for batch in (2, 7):
        x = torch.randn(batch, 2, 3)
        assert torch.equal(opened.model(x), model(x))


def test_the_rebuilt_program_can_be_captured_again(tmp_path: Path) -> None:
    model, (x,) = small_cnn()
    opened = exported(model, (x,), tmp_path)
    again = torch.export.export(opened.model, (x,), strict=False).module()
    assert torch.equal(again(x), model(x))


def test_control_flow_is_left_alone_and_says_so(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda y: y * self.w, lambda y: y - self.w, (x,))

    opened = exported(Branch(), (torch.ones(3),), tmp_path)
    assert opened.model is None
    assert "cond" in opened.why
    assert torch.equal(opened.file.tensors["w"], torch.ones(3))


def test_regions_without_gradients_or_autocast_are_transparent(tmp_path: Path) -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                scale = x.norm() + 1
            with torch.autocast("cpu", enabled=False):
                y = self.layer(x) / scale
            return y * 2

    model, x = Regions(), torch.randn(2, 3)
    opened = exported(model, (x,), tmp_path)
    assert opened.built_from == "exported-graph", opened.why
    assert torch.equal(opened.model(x), model(x))


def test_a_region_with_autocast_on_is_left_alone(tmp_path: Path) -> None:
    class Lowered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.layer(x)

    opened = exported(Lowered(), (torch.randn(2, 3),), tmp_path)
    assert opened.model is None
    assert "autocast" in opened.why


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    exported(nn.Linear(2, 2), (torch.ones(1, 2),), tmp_path)
    return (tmp_path / "m.pt2").read_bytes()


@pytest.mark.parametrize(
    ("change", "added", "why"),
    [
        (lambda name, data: data, hostile.Member("m/models/other.json", b"{}"), "2 exported programs"),
        (lambda name, data: None if "models/" in name else data, None, "compiled code"),
        (lambda name, data: None if "config.json" in name else data, None, "missing inside"),
        (lambda name, data: b"[" * 100_000 if name.endswith("config.json") else data, None, "not valid JSON"),
        (lambda name, data: b"[]" if name.endswith("model.json") else data, None, "not a JSON object"),
        (
            lambda name, data: data.replace(b'"as_int": 2', b'"as_int": 3') if "config" in name else data,
            None,
            "outside",
        ),
        (lambda name, data: data.replace(b'"as_int": 2', b'"as_int": -2') if "config" in name else data, None, "shape"),
        (lambda name, data: data.replace(b'"as_int": 2', b'"as_expr": 2') if "config" in name else data, None, "shape"),
        (lambda name, data: data.replace(b"weight_0", b"../../x") if "config" in name else data, None, "damaged"),
    ],
)
def test_damaged_or_foreign_archives_are_named(
    change: Any, added: hostile.Member | None, why: str, archive: bytes, tmp_path: Path
) -> None:
    (tmp_path / "m").write_bytes(hostile.rezip(archive, change, *([added] if added else [])))
    with pytest.raises(InputRefused, match=why):
        open_model_file(tmp_path / "m")


def test_the_older_layout_is_named(tmp_path: Path) -> None:
    members = [hostile.Member("serialized_exported_program.json", b"{}"), hostile.Member("version", b"5")]
    (tmp_path / "m").write_bytes(hostile.zip_archive(members))
    with pytest.raises(InputRefused, match=r"before 2\.9"):
        open_model_file(tmp_path / "m")
