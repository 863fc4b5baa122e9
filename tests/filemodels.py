"""Two pico models for tests of the file door, and the eight ways of saving one."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn


class SmallCnn(nn.Module):
    """A convolutional net with batch norm, a tied layer, buffers of both kinds and a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6))
        self.blocks[3].weight = self.blocks[2].weight
        self.scale = nn.Parameter(torch.randn(6, 5).t())
        self.register_buffer("shift", torch.randn(5))
        self.register_buffer("fleeting", torch.ones(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.norm(self.conv(x)).relu().mean((2, 3))
        out: Tensor = self.blocks(pooled) @ self.scale.t() + self.shift * self.fleeting
        return out


def small_cnn(seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The net in eval mode with running statistics that are not the initial ones, and an input."""
    torch.manual_seed(seed)
    model = SmallCnn()
    x = torch.randn(2, 3, 8, 8)
    model.train()(x)
    return model.eval(), (x,)


def pico_gpt2() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A GPT-2 of 16 dimensions, and an input."""
    import transformers as hf

    torch.manual_seed(1)
    config = hf.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    return hf.GPT2LMHeadModel(config).eval(), (torch.arange(8).reshape(1, 8),)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as an ordinary dict of detached tensors."""
    return {name: value.detach() for name, value in model.state_dict().items()}


class Logits(nn.Module):
    """A model that returns its first output, which tracing and export need; its state dict is the model's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.inner(ids)[0]
        return out


def _state_dict(model: nn.Module, _: tuple[Tensor, ...], path: Path) -> None:
    torch.save(model.state_dict(), path)


def _nested(model: nn.Module, _: tuple[Tensor, ...], path: Path) -> None:
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    optimiser = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer_state_dict": optimiser, "ema": state}, path)


def _whole(model: nn.Module, _: tuple[Tensor, ...], path: Path) -> None:
    torch.save(model, path)


def _legacy(model: nn.Module, _: tuple[Tensor, ...], path: Path) -> None:
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def _traced(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, inputs, check_trace=False).save(str(path))


def _exported(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    renamed = path.with_suffix(".pt2")  # torch.export.save insists on the suffix; the reader must not
    torch.export.save(torch.export.export(model, inputs, strict=False), renamed)
    renamed.rename(path)


def _safetensors(model: nn.Module, _: tuple[Tensor, ...], path: Path) -> None:
    safetensors.torch.save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, path)


def _pickled(model: nn.Module, _: tuple[Tensor, ...], path: Path) -> None:
    path.write_bytes(pickle.dumps(plain_state(model)))


def _numpy(model: nn.Module, _: tuple[Tensor, ...], path: Path) -> None:
    path.write_bytes(pickle.dumps({name: value.numpy() for name, value in plain_state(model).items()}))


Saver = Callable[[nn.Module, tuple[Tensor, ...], Path], None]
WAYS: dict[str, Saver] = {
    "state-dict": _state_dict,
    "nested-checkpoint": _nested,
    "whole-module": _whole,
    "legacy": _legacy,
    "torchscript": _traced,
    "exported": _exported,
    "safetensors": _safetensors,
    "plain-pickle": _pickled,
    "numpy-pickle": _numpy,
}
