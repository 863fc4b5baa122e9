"""Whole heads: a key-value head goes with all the query heads that read it, the rest is re-solved by least squares.

Removing the columns J of the least-squares solution V of the map that reads the heads costs
tr(V_J ([H^-1]_JJ)^-1 V_J^T) (block Optimal Brain Surgeon; as in SlimGPT, arXiv:2412.18110); one group goes at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused, UsageError
from cohomcli.pruning.channels import downdate
from cohomcli.pruning.parts import Anatomy, at
from cohomcli.pruning.slicing import matrix, resize
from cohomcli.pruning.solve import Problem, invertible
from cohomcli.pruning.spd import invert


@dataclass(frozen=True)
class HeadShape:
    """`groups` key-value heads, each read by `queries` query heads, all of `size` dimensions."""

    groups: int
    queries: int
    size: int

    def columns(self, group: int) -> Tensor:
        """Columns of the output map that a group of heads writes."""
        span = self.queries * self.size
        return torch.arange(group * span, (group + 1) * span)

    def rows(self, group: int) -> Tensor:
        """Rows of the key and the value map of a group."""
        return torch.arange(group * self.size, (group + 1) * self.size)


def head_shape(model: Any, anatomy: Anatomy) -> HeadShape:
    """The heads of a model whose stock class could load fewer of them.

    Raises:
        InputRefused: head_dim follows from hidden_size and the number of heads there, so no head can go.
    """
    config = model.config.get_text_config()
    if not anatomy.heads:
        raise InputRefused(
            f"{type(model).__name__} derives the size of a head from hidden_size, so stock classes cannot load it "
            "with fewer heads", "prune channels: mlp:0.25"
        )  # fmt: skip
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return HeadShape(groups, heads // groups, size)


def count_heads(shape: HeadShape, sparsity: float) -> int:
    """How many groups go: at least one, never all.

    Raises:
        UsageError: the share is less than one group.
    """
    count = int(shape.groups * sparsity + 1e-9)
    if count == 0 and sparsity > 0:
        raise UsageError(
            f"heads:{sparsity:g} of {shape.groups} key-value groups is less than one",
            f"give at least heads:{1 / shape.groups:.3g}",
        )
    return count


def remove_heads(problem: Problem, shape: HeadShape, count: int) -> tuple[list[int], Tensor]:
    """The groups that stay, in order, and the map's new weight (out, their columns)."""
    gram, target = invertible(problem)
    inverse = invert(gram.double())
    weight = target.double() @ inverse
    alive = list(range(shape.groups))
    for _ in range(count):
        costs = [_cost(weight, inverse, shape.columns(place)) for place in range(len(alive))]
        worst = costs.index(min(costs))
        gone = shape.columns(worst)
        stay = torch.cat([shape.columns(place) for place in range(len(alive)) if place != worst])
        weight, inverse = downdate(weight, inverse, gone, stay)
        del alive[worst]
    return alive, weight.to(problem.weight.dtype)


def take_heads(problem: Problem, shape: HeadShape, count: int, scores: Tensor) -> tuple[list[int], Tensor]:
    """The groups whose columns have the highest sums of `scores` (in,), and the map's columns as they are."""
    sums = [float(scores[shape.columns(group)].sum()) for group in range(shape.groups)]
    order = sorted(range(shape.groups), key=sums.__getitem__)
    alive = sorted(order[count:])
    return alive, problem.weight[:, torch.cat([shape.columns(group) for group in alive])]


def slice_heads(block: nn.Module, anatomy: Anatomy, shape: HeadShape, alive: Sequence[int], weight: Tensor) -> Tensor:
    """Give the attention of `block` only the groups `alive`; returns the kept columns of its output map."""
    columns = torch.cat([shape.columns(group) for group in alive])
    rows = torch.cat([shape.rows(group) for group in alive])
    for path, kept in zip(anatomy.groups[0].paths, (columns, rows, rows), strict=True):
        module = at(block, path)
        resize(module, matrix(module)[kept], kept)
    resize(at(block, anatomy.groups[1].paths[0]), weight)
    return columns


def note_heads(model: Any, shape: HeadShape, left: int) -> None:
    """Tell the configuration, for a stock class that loads the result."""
    config = model.config.get_text_config()
    config.head_dim = shape.size
    config.num_key_value_heads = left
    config.num_attention_heads = left * shape.queries


def _cost(weight: Tensor, inverse: Tensor, gone: Tensor) -> float:
    part = weight[:, gone]
    return float((part @ torch.linalg.inv(inverse[gone][:, gone]) * part).sum())
