"""The exactness report: what each block's MLP writes on the data, and how much of it the next attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.models.calls import uncached
from cohomcli.models.layout import Stack
from cohomcli.models.maps import ConsecutiveMaps, consecutive_maps
from cohomcli.models.pairs import PairReport
from cohomcli.nn.exactness import measure
from cohomcli.progress import Progress, silent

STEP = "exactness"


@torch.no_grad()
def exactness_report(
    model: nn.Module,
    stack: Stack,
    batches: Sequence[dict[str, Tensor]],
    energy: float = 0.01,
    progress: Progress = silent,
) -> tuple[PairReport, ...]:
    """Every pair of maps between neighbouring blocks, measured on what flows there for `batches`; ranks hold
    1 - `energy`. Empty where the architecture's maps are not known, or there is a single block.
    """
    pairs = consecutive_maps(model)
    if not pairs:
        return ()
    moments = _moments(stack, pairs, batches)
    found = []
    progress(STEP, 0, len(pairs))
    for pair, moment in zip(pairs, moments, strict=True):
        first, second = pair.pair(None).first, pair.pair(None).second
        # of A only A A^T matters: the identity on the data that A writes stands for it
        result = measure(torch.eye(len(first), dtype=first.dtype), second, moment, energy)
        found.append(
            PairReport(
                name=pair.name,
                rank_image=result.rank_image,
                rank_composite=result.rank_composite,
                free_rank=result.free_rank,
                kappa=result.complex_defect,
                eta=result.homology_defect,
                kernel_share=result.kernel_share,
                read_alignment=result.read_alignment,
                harmonic=result.harmonic,
            )
        )
        progress(STEP, len(found), len(pairs))
    return tuple(found)


def _moments(stack: Stack, pairs: Sequence[ConsecutiveMaps], batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """E[y y^T] (m, m) float64 of what every writer puts out, without its bias."""
    sums: list[Any] = [0.0] * len(pairs)
    rows = 0

    def listen(at: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
            y = output.flatten(0, -2)
            y = y if getattr(module, "bias", None) is None else y - module.bias
            sums[at] = sums[at] + (y.T @ y).double()

        return hook

    handles = [pair.writer.register_forward_hook(listen(at)) for at, pair in enumerate(pairs)]
    try:
        for batch in batches:
            stack.module(**batch, **uncached(stack.module))
            rows += batch["input_ids"].numel()
    finally:
        for handle in handles:
            handle.remove()
    return [total / max(rows, 1) for total in sums]
