"""How many attention heads? Weights do not say: published sizes and conventions do, and every use is an assumption."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_CONVENTION = 64  # elements per head in nearly every published transformer of width 512 and more
_SMALLEST = 512


@dataclass
class Inference:
    """A configuration in the making: `config` entries, the `assumptions` among them, and what is `lacking`.

    `foreign` is set when the weights are of a relative that shares the family's names but not its architecture.
    """

    config: dict[str, Any] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    foreign: bool = False

    def assume(self, text: str) -> None:
        """Record a setting that the weights do not prove."""
        self.assumptions.append(text)


def infer_heads(found: Inference, key: str, width: int, published: dict[int, int]) -> None:
    """Set `config[key]` for a stack of `width`: as published for that width, else 64 elements per head.

    Below width 512 no convention holds, so an unpublished width leaves the number of heads lacking.
    """
    if width in published:
        found.config[key] = published[width]
        found.assume(f"{published[width]} attention heads, as in the published models of width {width}")
    elif width >= _SMALLEST and width % _CONVENTION == 0:
        found.config[key] = width // _CONVENTION
        found.assume(f"{width // _CONVENTION} attention heads, by the convention of {_CONVENTION} elements per head")
    else:
        found.lacking.append(f"the number of attention heads for width {width}")


def rotary_base(table: Tensor, rotary_size: int) -> float | None:
    """The base theta of a stored table theta^(-2i/d), i < d/2 (RoPE, arXiv 2104.09864); None when it is no such table.

    A scaled table (Llama 3) is not a geometric series and gives None.
    """
    values = table.detach().double().flatten()
    if rotary_size < 4 or values.numel() * 2 != rotary_size or values[0] != 1 or bool((values <= 0).any()):
        return None
    base = float(values[1] ** (-rotary_size / 2))
    exponents = -2.0 / rotary_size * values.new_tensor(range(values.numel()))
    expected = values.new_tensor(base) ** exponents
    return float(round(base)) if bool(((values - expected).abs() <= 1e-2 * expected).all()) else None
