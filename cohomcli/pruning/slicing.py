"""Surgery on modules: a map's matrix read and written the way it is stored, and maps made smaller."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.pruning.parts import is_transposed


def matrix(module: Any) -> Tensor:
    """The weight as (out, in), a view."""
    weight: Tensor = module.weight.detach()
    return weight.T if is_transposed(module) else weight


@torch.no_grad()
def store(module: Any, solution: Tensor) -> None:
    """Put `solution` (out, in) in the weight's place."""
    module.weight.copy_((solution.T if is_transposed(module) else solution).to(module.weight.dtype))


@torch.no_grad()
def resize(module: Any, weight: Tensor, kept: Tensor | None = None) -> None:
    """Give `module` a smaller weight (out, in); with `kept` its outputs, and its bias, are those of these indices."""
    stored = (weight.T if is_transposed(module) else weight).contiguous().to(module.weight.dtype)
    module.weight = nn.Parameter(stored, requires_grad=False)
    if kept is not None and module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[kept].clone(), requires_grad=False)
    if is_transposed(module):
        module.nx, module.nf = stored.shape
    else:
        module.out_features, module.in_features = stored.shape
