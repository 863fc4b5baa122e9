"""Exported programs rebuilt from their JSON graph compute exactly what they computed when they were exported."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import tinymodels
import torch
from filemodels import Logits, small_cnn
from torch import Tensor, nn

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
