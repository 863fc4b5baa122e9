"""Models whose maps are products of two thin ones: their file, their modules, and the way back to plain matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.layout import Stack, find_stacks
from cohomcli.permissions import open_up
from cohomcli.pruning.parts import at
from cohomcli.pruning.slicing import matrix, store
from cohomcli.pruning.truncate import Factors, balanced

FACTORS_FILE = "factors.safetensors"


class TwoFactor(nn.Module):
    """x -> A (B x) + b in place of a Linear or Conv1D: `left` A (out, r), `right` B (r, in), `bias` (out,) or None."""

    def __init__(self, factors: Factors, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(factors.left.clone()), nn.Parameter(factors.right.clone())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return nn.functional.linear(nn.functional.linear(x, self.right), self.left, self.bias)


def load_factored(folder: str | Path) -> nn.Module:
    """The stock model in `folder`, the `model` folder that `cohom prune --pattern rank:S` wrote, in eval mode, with two
    thin maps in the place of every map that was pruned: fewer parameters and operations, logits equal up to rounding.

    Raises:
        InputRefused: no such model, no factors beside it, damaged ones, or those of another model.
    """
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import LoadOptions

    place = Path(folder)
    factors = read_factors(place)
    model = load(resolve(str(place)), LoadOptions()).model
    put_in(find_stacks(model).stacks[0], factors)
    return model.eval()


def save_factors(path: Path, factors: Mapping[str, Factors]) -> None:
    """One file with `<map>.left` (out, r) and `<map>.right` (r, in) in float32 of every map."""
    from safetensors.torch import save_file

    tensors = {f"{name}.left": one.left.float().contiguous() for name, one in factors.items()}
    tensors |= {f"{name}.right": one.right.float().contiguous() for name, one in factors.items()}
    save_file(tensors, path, metadata={"layout": "weight (out, in) = left (out, r) @ right (r, in)"})
    open_up([path])


def read_factors(place: Path) -> dict[str, Factors]:
    """The factors in a folder, or in the file itself, by the map's name such as `layer_0.mlp.c_fc`.

    Raises:
        InputRefused: no such file, damaged, or halves that do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = place / FACTORS_FILE if place.is_dir() else place
    if not path.is_file():
        raise InputRefused(
            f"no {FACTORS_FILE} at {str(place)!r}", "give a folder that `cohom prune --pattern rank:0.5` wrote"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputRefused(f"{str(path)!r} is no safetensors file", "prune the model again") from error
    found = {}
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        left, right = tensors.get(f"{name}.left"), tensors.get(f"{name}.right")
        if left is None or right is None or left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
            raise InputRefused(f"the factors of {name} in {str(path)!r} do not fit each other", "prune the model again")
        found[name] = Factors(left, right)
    if not found:
        raise InputRefused(f"{str(path)!r} holds no factors", "prune the model again")
    return found


def put_in(stack: Stack, factors: Mapping[str, Factors]) -> dict[str, Any]:
    """Put a `TwoFactor` in the place of every map in `factors`; returns the modules that were there, by name.

    Raises:
        InputRefused: a map that the model does not have, or of another shape.
    """
    found: dict[str, Any] = {}
    for name, one in factors.items():
        owner, attribute = _place(stack, name)
        module = getattr(owner, attribute, None)
        shape = (one.left.shape[0], one.right.shape[1])
        if getattr(module, "weight", None) is None or matrix(module).shape != shape:
            raise InputRefused(f"the factors of {name} do not fit this model", "name the model that was pruned")
        found[name] = module
    for name, module in found.items():
        owner, attribute = _place(stack, name)
        _replace(owner, attribute, TwoFactor(factors[name], module.bias))
    return found


@contextmanager
def factored(stack: Stack, factors: MutableMapping[str, Factors], *, trained: bool = True) -> Iterator[None]:
    """Inside, the maps in `factors` are two thin ones; behind it they are plain matrices again. Where they were
    `trained`, `factors` then holds what became of them, and the weights are their products.
    """
    modules = put_in(stack, factors)
    try:
        yield
    finally:
        for name, module in modules.items():
            owner, attribute = _place(stack, name)
            thin = getattr(owner, attribute)
            if trained:
                factors[name] = balanced(Factors(thin.left.detach(), thin.right.detach()))
                store(module, factors[name].product())
            _replace(owner, attribute, module)


def _place(stack: Stack, name: str) -> tuple[Any, str]:
    """The module that owns the map `layer_0.mlp.c_fc`, or None, and its attribute's name."""
    layer, _, path = name.partition(".")
    number = layer.removeprefix("layer_")
    owner, _, attribute = path.rpartition(".")
    if not number.isdigit() or int(number) >= len(stack.blocks):
        return None, attribute
    block = stack.blocks[int(number)]
    return (at(block, owner) if owner else block), attribute


def _replace(owner: Any, attribute: str, module: nn.Module) -> None:
    """Also in a Sequential, whose parts are named by numbers."""
    owner._modules[attribute] = module
