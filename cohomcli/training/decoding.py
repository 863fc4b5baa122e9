"""Fill the hidden cells of grids in a few passes, all directions at once: confidence decoding (Chang et al. 2022, 3.2).

Every pass predicts all hidden cells together, draws a value for each and keeps those it is surest of; the share that
stays hidden after pass t of T is cos(pi t / 2T). One pass draws all cells independently; as many passes as cells fill
one cell at a time, in the order that the model chooses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.progress import Progress, silent

STEP = "decode"


@dataclass(frozen=True)
class DecodingOptions:
    """`steps` is the number of passes. A `temperature` of 0 takes the likeliest value of every cell.

    `guidance` g moves logits to l + g (l - u), u those without a class (Ho and Salimans 2022); 0 leaves them alone and
    costs no second pass. `noise` is the scale of Gumbel noise on the log confidences, which falls to 0 linearly over
    the passes; without it the same easy cells would always come first (section 3.2 and appendix of MaskGIT).
    """

    steps: int = 8
    temperature: float = 1.0
    guidance: float = 0.0
    noise: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be decoded with.

        Raises:
            UsageError: a number is out of its range.
        """
        if self.steps < 1:
            raise UsageError(f"--steps {self.steps} must be at least 1")
        for name in ("temperature", "guidance", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"--{name} {getattr(self, name)} must be a finite number, 0 or more")


@dataclass(frozen=True)
class Decoded:
    """`grids` (B, H, W) int64 are whole; `filled_at` of that shape is the pass that filled each cell, 0 where it was
    given, and `confidence`, float32, the probability that the cell's value had then; 1 where it was given.
    """

    grids: Tensor
    filled_at: Tensor
    confidence: Tensor


@torch.no_grad()
def decode(
    model: nn.Module,
    grids: Tensor,
    options: DecodingOptions,
    class_ids: Tensor | None = None,
    progress: Progress = silent,
) -> Decoded:
    """Fill every cell of `grids` (B, H, W) int64 that holds the model's mask token; other cells stay.

    `model` is a `NonLinearTransformer` whose configuration names its `mask_token_id`; `class_ids` is (B,) int64 or
    None. The draws depend on `options.seed` and the shape of the batch alone.

    Raises:
        UsageError: guidance without classes.
        AnalysisIncomplete: the model's logits are not finite.
    """
    config: Any = model.config
    mask_id = int(config.mask_token_id)
    if options.guidance and not (config.n_classes and class_ids is not None):
        raise UsageError("--guidance needs a class for every grid", "name one with --label, or leave guidance at 0")
    generator = torch.Generator().manual_seed(options.seed)
    current, hidden = grids.clone(), grids == mask_id
    at_first = hidden.flatten(1).sum(1)
    confidence, filled_at = torch.ones(grids.shape), torch.zeros_like(grids)
    progress(STEP, 0, options.steps)
    for step in range(1, options.steps + 1):
        logits = _logits(model, current, options.guidance, class_ids)
        logits[..., mask_id] = -math.inf
        values, chances = _drawn(logits, options.temperature, generator)
        left = (at_first * math.cos(math.pi / 2 * step / options.steps)).floor().to(torch.int64)
        if step == options.steps:
            left = torch.zeros_like(left)
        annealed = options.noise * (1 - step / options.steps)
        kept = _surest(chances, hidden, left, annealed, generator)
        current = torch.where(kept, values, current)
        confidence = torch.where(kept, chances, confidence)
        filled_at = filled_at.masked_fill(kept, step)
        hidden = hidden & ~kept
        progress(STEP, step, options.steps)
    return Decoded(current, filled_at, confidence)


def _logits(model: nn.Module, grids: Tensor, guidance: float, class_ids: Tensor | None) -> Tensor:
    """(B, H, W, V) float32 on the CPU, guided if wanted."""
    device = next(model.parameters()).device
    inputs = {"input_ids": grids.to(device)}
    named = inputs if class_ids is None else {**inputs, "class_ids": class_ids.to(device)}
    logits: Tensor = model(**named).logits.float()
    if guidance:
        logits = logits + guidance * (logits - model(**inputs).logits.float())
    if not bool(logits.isfinite().all()):
        raise AnalysisIncomplete("the model's logits are not finite", "train it again, with a lower learning rate")
    return logits.cpu()


def _drawn(logits: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A value for every cell, (B, H, W) int64, and the probability that the model itself (temperature 1) gives it."""
    chances = logits.softmax(-1)
    if temperature:
        gumbel = -torch.log(-torch.log(_open_uniform(logits.shape, generator)))
        values = (logits / temperature + gumbel).argmax(-1)
    else:
        values = logits.argmax(-1)
    return values, chances.gather(-1, values[..., None])[..., 0]


def _surest(chances: Tensor, hidden: Tensor, left: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Which hidden cells to keep, bool (B, H, W): all but the `left` (B,) least sure ones of each grid, yet one more
    than none: a pass that has hidden cells fills at least one.
    """
    sure = chances.clamp_min(torch.finfo(chances.dtype).tiny).log()
    if noise:
        sure = sure - noise * torch.log(-torch.log(_open_uniform(sure.shape, generator)))
    ranks = sure.masked_fill(~hidden, -math.inf).flatten(1).argsort(dim=1, descending=True).argsort(dim=1)
    count = hidden.flatten(1).sum(1)
    wanted = (count - left).clamp_min(1).minimum(count)
    return (ranks < wanted[:, None]).view_as(hidden) & hidden


def _open_uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Uniform in (0, 1): torch.rand may give 0, whose logarithm is infinite."""
    return torch.rand(shape, generator=generator).clamp(1e-12, 1 - 1e-7)
