"""The masks of --mask: zeros of a pruned model that training keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from cohomcli.training.masks import MakeOptimizer


def check_mask(model: nn.Module, mask: str | None) -> None:
    """Refuse masks that do not fit before anything is written.

    Raises:
        InputRefused: no masks there, or those of another model.
    """
    if mask is not None:
        from cohomcli.models.masks import read_masks

        read_masks(Path(mask), model)


def keeping_zeros(make: Any, model: nn.Module, mask: str | None) -> MakeOptimizer:
    """The optimiser that `make` makes; with `mask` it keeps what is masked at zero."""
    if mask is None:
        found: MakeOptimizer = make
        return found
    from cohomcli.models.masks import read_masks
    from cohomcli.training.masks import masked

    return masked(make, read_masks(Path(mask), model))
