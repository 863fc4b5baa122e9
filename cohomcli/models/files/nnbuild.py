"""A model of plain `torch.nn` layers in sequence, rebuilt from a pickle's settings: the one whole module we can run.

Only the classes listed here are ever made, by their own constructors, from plain numbers. A class of the user's own has
a `forward` that no file holds.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.files.assign import fill
from cohomcli.models.files.modelfile import ModelFile
from cohomcli.models.wording import first_line

_LAYERS: dict[str, type[nn.Module]] = {
    made.__name__: made
    for made in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Embedding, nn.Bilinear,
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm2d,
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
        nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.Softmax, nn.LogSoftmax, nn.PReLU, nn.Identity,
        nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
        nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.Upsample, nn.PixelShuffle,
    )
}  # fmt: skip
_PICKLED = ("torch-zip", "torch-legacy", "pickle")  # only these keep the settings of a module
_IGNORED = frozenset({"self", "device", "dtype", "kwargs", "args"})


def is_plain_sequence(file: ModelFile) -> bool:
    """Whether the file holds a pickled `nn.Sequential` (or one layer) made of the known layers only."""
    return (
        bool(file.module_settings) and file.kind in _PICKLED and all(_known(path) for path in file.module_tree.values())
    )


def _known(path: str) -> bool:
    module, _, name = path.rpartition(".")
    return module.startswith("torch.nn.modules.") and (name == "Sequential" or name in _LAYERS)


def build_sequence(file: ModelFile) -> nn.Module:
    """The pickled module, with the stored tensors, in eval mode.

    Raises:
        InputRefused: its settings make no module, or its tensors do not fit.
    """
    try:
        with torch.device("meta"):  # sizes are the file's claims until `fill` has compared them with its tensors
            module = _make("", file)
    except (TypeError, ValueError, RuntimeError, KeyError, OverflowError) as error:
        raise InputRefused(
            f"{str(file.path)!r} holds layers with impossible settings: {first_line(error)}", "save the model again"
        ) from error
    fill(module, file.tensors, str(file.path))
    return module.eval()


def _make(path: str, file: ModelFile) -> nn.Module:
    name = file.module_tree[path].rpartition(".")[2]
    if name != "Sequential":
        made = _LAYERS[name]
        return made(**_arguments(made, file.module_settings.get(path, {}), _own(path, file)))
    start = f"{path}." if path else ""
    children = [
        child for child in file.module_tree if child.startswith(start) and "." not in child[len(start) :] and child
    ]
    module = nn.Sequential()
    for child in children:
        module.add_module(child[len(start) :], _make(child, file))
    return module


def _own(path: str, file: ModelFile) -> dict[str, Tensor]:
    start = f"{path}." if path else ""
    return {name[len(start) :]: value for name, value in file.tensors.items() if name.startswith(start)}


def _arguments(made: type[nn.Module], settings: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments: a layer keeps them as attributes of the same names; `bias` is whether there is one."""
    names = [name for name in inspect.signature(made).parameters if name not in _IGNORED]
    arguments = {name: settings[name] for name in names if name in settings}
    if "bias" in names:
        arguments["bias"] = "bias" in tensors
    if made is nn.PReLU:
        arguments["num_parameters"] = tensors["weight"].numel()
    return arguments
