"""Heads, MLPs and neurons as channels: slices of what enters the last map of every attention and every MLP.

Replacing a slice replaces exactly what the unit writes to the residual stream, for any decoder, without rebuilding it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cohomcli.circuits.batches import Metric, PairBatch, Recorded, Side, last_logits, measure
from cohomcli.circuits.hooks import all_of, embedded, interpolated, on_input
from cohomcli.models.units import Unit
from cohomcli.models.wiring import WiredBlock

Level = Literal["heads", "neurons"]


@dataclass(frozen=True)
class Site:
    """A map whose input holds units side by side; channel c belongs to unit `owner`[c] of the whole model, (C,)."""

    module: nn.Module
    owner: Tensor


class ChannelGraph:
    """The model as attention heads with whole MLPs ("heads") or with single neurons ("neurons")."""

    def __init__(self, model: nn.Module, blocks: Sequence[WiredBlock], level: Level, metric: Metric) -> None:
        self.model, self.metric = model, metric
        units: list[Unit] = []
        self.sites: list[Site] = []
        device = next(model.parameters()).device
        for block in blocks:
            start = len(units)
            units += [Unit(block.layer, "head", at) for at in range(block.n_heads)]
            channels = torch.arange(block.n_heads * block.head_dim, device=device)
            self.sites.append(Site(block.attn_out, start + channels // block.head_dim))
            start = len(units)
            neurons = torch.arange(block.width, device=device)
            one = level == "heads"
            apart = [Unit(block.layer, "neuron", at) for at in range(block.width)]
            units += [Unit(block.layer, "mlp")] if one else apart
            self.sites.append(Site(block.mlp_out, start + (torch.zeros_like(neurons) if one else neurons)))
        self.components = tuple(unit.name for unit in units)

    @torch.no_grad()
    def record(self, batch: PairBatch) -> Recorded:
        """Run both sides and keep the channels of every site."""
        return Recorded(batch, self._channels(batch.clean), self._channels(batch.corrupt))

    def _channels(self, ids: Tensor) -> tuple[Tensor, ...]:
        seen: list[Tensor] = [torch.empty(0)] * len(self.sites)

        def keep(at: int) -> Any:
            def change(x: Tensor) -> None:
                seen[at] = x.detach().reshape(*ids.shape, -1)

            return change

        with all_of([on_input(site.module, keep(at)) for at, site in enumerate(self.sites)]):
            last_logits(self.model, ids)
        return tuple(seen)

    @torch.no_grad()
    def exchanged(self, recorded: Recorded, base: Side, values: Sequence[Tensor], masks: Tensor) -> Tensor:
        """(P, B): the metric when the model reads side `base` and the components of `masks` (P, n) are replaced.

        `values` are what they are replaced by, shaped as a side of `recorded`.
        """
        ids = recorded.batch.side(base)
        runs = len(masks)
        hooks = [
            on_input(site.module, _replacing(masks[:, site.owner], value, runs))
            for site, value in zip(self.sites, values, strict=True)
            if bool(masks[:, site.owner].any())
        ]
        with all_of(hooks):
            logits = last_logits(self.model, ids.repeat(runs, 1))
        return measure(logits, recorded.batch, self.metric)

    def attribution(self, recorded: Recorded, base: Side, steps: int) -> Tensor:
        """(B, n): first-order effect of replacing each component of side `base` by the other side's.

        (z' - z) . dm/dz, summed over a unit's channels and tokens (Nanda 2023; Syed, Rager, Conmy 2023,
        arXiv:2310.10348). With `steps` > 0 the gradient is the mean over the midpoints of `steps` equal parts of the
        path between the two sides' token embeddings (after Hanna, Pezzelle, Belinkov 2024, arXiv:2403.17806).
        """
        other: Side = "corrupt" if base == "clean" else "clean"
        ids = recorded.batch.side(base)
        start, end = embedded(self.model, ids), embedded(self.model, recorded.batch.side(other))
        shares = [(at + 0.5) / steps for at in range(steps)] or [0.0]
        scores = torch.zeros(len(ids), len(self.components), device=ids.device, dtype=start.dtype)
        for share in shares:
            with interpolated(self.model, start, end, share):
                gradients = self._gradients(recorded.batch, ids)
            pairs = zip(self.sites, recorded.side(base), recorded.side(other), gradients, strict=True)
            for site, own, theirs, gradient in pairs:
                effect = ((theirs - own) * gradient).sum(1)  # (B, C)
                scores.index_add_(1, site.owner, effect / len(shares))
        return scores

    def _gradients(self, batch: PairBatch, ids: Tensor) -> list[Tensor]:
        """dm/dz at every site, (B, T, C)."""
        leaves: list[Tensor] = [torch.empty(0)] * len(self.sites)

        def shift(at: int) -> Any:
            def change(x: Tensor) -> Tensor:
                leaves[at] = torch.zeros_like(x, requires_grad=True)
                return x + leaves[at]

            return change

        with torch.enable_grad(), all_of([on_input(site.module, shift(at)) for at, site in enumerate(self.sites)]):
            total = measure(last_logits(self.model, ids), batch, self.metric).sum()
            found = torch.autograd.grad(total, leaves)
        return [gradient.reshape(*ids.shape, -1) for gradient in found]


def _replacing(masks: Tensor, value: Tensor, runs: int) -> Any:
    """Replace the channels of `masks` (P, C) by `value` (B, T, C) in P stacked copies of the batch."""

    def change(x: Tensor) -> Tensor:
        split = x.reshape(runs, *value.shape)
        return torch.where(masks[:, None, None, :], value, split).reshape(x.shape)

    return change


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no weight asks for a gradient: only activations do."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
