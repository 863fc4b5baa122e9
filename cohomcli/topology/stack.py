"""Which layers of an analysis form the stack of blocks that depth, expansion and comparisons are about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cohomcli.topology.results import Expansion, LayerTopology

_BLOCK = re.compile(r"layer_(\d+)")


@dataclass(frozen=True)
class Stack:
    """The embedding, if analysed, and the analysed blocks with their indices, in forward order."""

    embedding: LayerTopology | None
    blocks: tuple[LayerTopology, ...]
    indices: tuple[int, ...]


def stack_of(layers: Sequence[LayerTopology]) -> Stack:
    """The residual stack among `layers`, without final norm and attention or MLP outputs; encoder-decoders: encoder."""
    side = "encoder." if any(layer.name.startswith(("encoder.", "decoder.")) for layer in layers) else ""
    named = {layer.name.removeprefix(side): layer for layer in layers if layer.name.startswith(side)}
    blocks = [(int(match[1]), layer) for name, layer in named.items() if (match := _BLOCK.fullmatch(name))]
    return Stack(named.get("embedding"), tuple(layer for _, layer in blocks), tuple(index for index, _ in blocks))


def expansion_of(layers: Sequence[LayerTopology]) -> Expansion:
    """Peak over the blocks / embedding of the H0 totals, raw and over scale (see `Expansion`)."""
    stack = stack_of(layers)
    if stack.embedding is None or not stack.blocks:
        reason = "the embedding was not analysed" if stack.embedding is None else "no block was analysed"
        return Expansion(None, None, None, None, reason)
    start = stack.embedding.summaries[0]
    if start.total_persistence == 0:
        reason = "all points of the embedding coincide: its H0 total is zero"
        return Expansion(None, None, None, None, reason, _compat_ratio(layers, stack.embedding))
    raw = max(stack.blocks, key=lambda layer: layer.summaries[0].total_persistence)
    free = max(stack.blocks, key=lambda layer: layer.summaries[0].total_over_scale)
    return Expansion(
        raw=raw.summaries[0].total_persistence / start.total_persistence,
        scale_free=free.summaries[0].total_over_scale / start.total_over_scale,
        peak_raw=raw.name,
        peak_scale_free=free.name,
        compat=_compat_ratio(layers, stack.embedding),
    )


def _compat_ratio(layers: Sequence[LayerTopology], embedding: LayerTopology) -> float | None:
    """ToDACoMM's ratio; its H0 total is at least 1, so it never divides by zero."""
    totals = [
        layer.compat["H0_total_persistence"]
        for layer in layers
        if layer.compat is not None and not layer.name.endswith("final_norm")
    ]
    return max(totals) / embedding.compat["H0_total_persistence"] if totals and embedding.compat else None
