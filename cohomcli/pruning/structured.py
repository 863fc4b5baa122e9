"""Parts of a block that really go, equally many in every block, so that a stock configuration describes the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.pruning.channels import Columns, remove_columns, score_columns, take_columns
from cohomcli.pruning.context import Context, widened
from cohomcli.pruning.depth import refit
from cohomcli.pruning.heads import HeadShape, count_heads, note_heads, remove_heads, slice_heads, take_heads
from cohomcli.pruning.moments import Moments
from cohomcli.pruning.parts import Anatomy, at
from cohomcli.pruning.slicing import matrix, resize, store
from cohomcli.pruning.solve import Factor, Problem

PROBE_BATCH = 64  # channels that go at once while lambda is chosen


def prune_channels(context: Context, index: int, block: nn.Module, anatomy: Anatomy) -> Tensor:
    """Slice the MLP of a block; returns the channels (k,) that stay.

    Raises:
        InputRefused: the method needs a bias that the stock class does not have.
    """
    group = anatomy.mlp
    reader = at(block, anatomy.reader)
    width = matrix(reader).shape[1]
    count = int(width * context.pattern.sparsity)

    def probe(fit: Problem) -> Tensor:
        found = remove_columns(fit, count, PROBE_BATCH)
        return widened(found.weight, found.kept, width)

    moments, (shrink,) = context.moments(block, group, probe, rows=0)
    problem = replace(context.problem(reader, moments, Factor()), shrink=shrink)
    found = _columns(context.options.method, problem, moments, count)
    context.note(f"layer_{index}.{anatomy.reader}", problem, widened(found.weight, found.kept, width))
    resize(reader, found.weight)
    if found.bias is not None:
        _add_bias(context.model, reader, [at(block, path) for path in anatomy.channels], found.bias)
    for path in anatomy.channels:
        resize(at(block, path), matrix(at(block, path))[found.kept], found.kept)
    setattr(_config(context.model), anatomy.width, width - count)
    return found.kept


def _columns(method: str, problem: Problem, moments: Moments, count: int) -> Columns:
    if method == "chain":
        return remove_columns(problem, count)
    return take_columns(problem, method, count, *moments.variances())


def prune_heads(context: Context, index: int, block: nn.Module, anatomy: Anatomy, shape: HeadShape) -> None:
    """Slice the attention of a block by whole groups of heads."""
    group, path = anatomy.groups[1], anatomy.groups[1].paths[0]
    count = count_heads(shape, context.pattern.sparsity)
    width = matrix(at(block, path)).shape[1]

    def probe(fit: Problem) -> Tensor:
        alive, weight = remove_heads(fit, shape, count)
        return widened(weight, torch.cat([shape.columns(one) for one in alive]), width)

    moments, (shrink,) = context.moments(block, group, probe, rows=0)
    problem = replace(context.problem(at(block, path), moments, Factor()), shrink=shrink)
    if context.options.method == "chain":
        alive, weight = remove_heads(problem, shape, count)
    else:
        scores = score_columns(problem, context.options.method, moments.variances()[1])
        alive, weight = take_heads(problem, shape, count, scores)
    columns = slice_heads(block, anatomy, shape, alive, weight)
    context.note(f"layer_{index}.{path}", problem, widened(weight, columns, width))
    note_heads(context.model, shape, len(alive))


def fit_before_gap(context: Context, index: int, block: nn.Module, anatomy: Anatomy) -> None:
    """Fit the MLP's last map to the dense state behind the blocks that go after it."""
    group = anatomy.mlp
    module = at(block, group.paths[0])
    moments, (shrink,) = context.moments(block, group, refit)
    problem = replace(context.problem(module, moments, Factor()), shrink=shrink)
    solution = refit(problem)
    context.note(f"layer_{index}.{group.paths[0]}", problem, solution)
    store(module, solution)


def _add_bias(model: nn.Module, reader: Any, writers: Sequence[Any], bias: Tensor) -> None:
    """Add `bias` (out,) to what `reader` puts out; where maps have none, all of the MLP get one that the stock class
    knows by its configuration.
    """
    if reader.bias is None:
        config = _config(model)
        if not hasattr(config, "mlp_bias"):
            raise InputRefused(
                f"{type(model).__name__} has no biases in its MLP, which flap needs", "use chain or wanda"
            )
        config.mlp_bias = True
        for module in (reader, *writers):
            module.bias = nn.Parameter(torch.zeros(matrix(module).shape[0]), requires_grad=False)
    reader.bias.data.add_(bias.to(reader.bias.dtype))


def _config(model: Any) -> Any:
    return model.config.get_text_config()
