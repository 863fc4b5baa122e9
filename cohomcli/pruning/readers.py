"""The metric in which an attention's queries, keys and values are read, where no norm stands between.

A value is read by the columns of the output map that belong to its heads, a query by the keys it meets and a key by the
queries. Whatever else a block's maps write is normed or bent before anybody reads it: no metric, all of it counts
alike. (The gain and the maps behind the norm as a metric for what is added to the stream were tried: docs/prune.md.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.pruning.moments import Moments
from cohomcli.pruning.parts import Anatomy, at
from cohomcli.pruning.slicing import matrix

_NORMS = ("self_attn.q_norm", "self_attn.k_norm")  # Qwen 3, Gemma 3: between queries or keys and their product


def metrics(model: Any, block: nn.Module, anatomy: Anatomy, moments: Moments) -> dict[str, Tensor]:
    """(out, out) float64 by path, of the first group of `anatomy` whose inputs have `moments`; a map that is read in
    no known metric is left out.

    In a map that holds queries, keys and values the three are scaled so that each counts for as much as without.
    """
    group = anatomy.groups[0]
    maps = [at(block, path) for path in group.paths]
    weights = [matrix(module).double() for module in maps]
    biases = [_bias(module) for module in maps]
    fused = len(maps) == 1
    if fused:
        weights, biases = list(weights[0].chunk(3)), list(biases[0].chunk(3))
    if len(weights) != 3:
        return {}
    found = _attention(model, block, anatomy, moments, weights, biases)
    if not fused:
        return {path: metric for path, metric in zip(group.paths, found, strict=True) if metric is not None}
    gram = moments.gram.double()
    parts = []
    for weight, metric in zip(weights, found, strict=True):
        image = weight @ gram @ weight.T
        own = torch.eye(len(weight), dtype=torch.float64) if metric is None else metric
        parts.append(own * (image.trace() / (own * image).sum().clamp_min(1e-300)))
    return {group.paths[0]: _block_diagonal(parts)}


def _attention(
    model: Any, block: nn.Module, anatomy: Anatomy, moments: Moments, weights: list[Tensor], biases: list[Tensor]
) -> list[Tensor | None]:
    """Metrics of queries, keys and values."""
    output = matrix(at(block, anatomy.groups[1].paths[0])).double()
    heads = getattr(at(block, "attn"), "heads", None) or model.config.get_text_config().num_attention_heads
    size = output.shape[1] // heads
    groups = len(weights[1]) // size
    read = output.T.reshape(groups, -1, size, len(output))  # (group, query heads of it, size, d)
    values = _block_diagonal(torch.einsum("ghid,ghjd->gij", read, read))
    if any(at(block, path) is not None for path in _NORMS):
        return [None, None, values]
    turned = _rotary(block)
    # what all keys share moves every score of a query alike, which softmax does not see; turned by position it differs
    keys = _second_moments(weights[1], biases[1], moments, size, centred=not turned)
    queries = _second_moments(weights[0], biases[0], moments, size, centred=False)
    if turned:
        keys, queries = _averaged(keys), _averaged(queries)
    summed = queries.reshape(groups, -1, size, size).sum(1)
    return [_block_diagonal(keys.repeat_interleave(heads // groups, 0)), _block_diagonal(summed), values]


def _second_moments(weight: Tensor, bias: Tensor, moments: Moments, size: int, *, centred: bool) -> Tensor:
    """E[y y^T] of every head's output y = W x + b, or its covariance: (heads, size, size)."""
    gram, mean = moments.gram.double() / moments.rows, moments.total / moments.rows
    if centred:
        gram, shift = gram - torch.outer(mean, mean), torch.zeros_like(bias)
    else:
        shift = bias
    rows, shifts = weight.reshape(-1, size, weight.shape[1]), shift.reshape(-1, size)
    cross = torch.einsum("hi,hj->hij", rows @ mean, shifts)
    return rows @ gram @ rows.mT + cross + cross.mT + torch.einsum("hi,hj->hij", shifts, shifts)


def _averaged(moments: Tensor) -> Tensor:
    """The mean over turns of all pairs (i, i + size / 2) by angles that are unrelated: diagonal, equal in a pair."""
    diagonal = moments.diagonal(dim1=1, dim2=2)
    pairs = diagonal.reshape(len(diagonal), 2, -1).mean(1)
    return torch.diag_embed(torch.cat([pairs, pairs], dim=1))


def _block_diagonal(parts: Iterable[Tensor]) -> Tensor:
    found: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return found


def _rotary(block: nn.Module) -> bool:
    """Whether queries and keys are turned by position: in Llama's family, and in ours where the attention says so."""
    own = getattr(at(block, "attn"), "rotary", None)
    return bool(own) if own is not None else at(block, "mlp.gate_proj") is not None


def _bias(module: Any) -> Tensor:
    bias = getattr(module, "bias", None)
    if bias is None:
        return torch.zeros(len(matrix(module)), dtype=torch.float64)
    found: Tensor = bias.detach().double()
    return found
