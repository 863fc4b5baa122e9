"""The number formats a tensor may be stored in: one table of widths and ranges, and their partial order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cohomcli.errors import UsageError
from cohomcli.registry import did_you_mean

if TYPE_CHECKING:
    import torch

SCALE_BYTES = 4  # a quantisation scale is stored as one float32
INT8_CODES = 127  # codes run from -127 to 127: symmetric, so that -w is stored as exactly -code


@dataclass(frozen=True)
class Format:
    """A storage format: finite values m * 2^e with |m| < 2^significand_bits and e >= emin - significand_bits + 1.

    `significand_bits` counts the implicit bit, `emin` is the exponent of the smallest normal number, `max` the largest
    finite magnitude, `n_bytes` the bytes per element without scales, `dtype` the name of the torch dtype.
    `overflow_to_inf` is False where the format has no infinity: what is too large becomes NaN.
    `per_channel` marks int8: code * scale with one float32 scale per output channel, so its table entries describe
    the codes (unit scale) and its rounding is relative to the channel's largest weight.
    """

    name: str
    significand_bits: int
    emin: int
    max: float
    n_bytes: int
    dtype: str
    overflow_to_inf: bool = True
    per_channel: bool = False

    @property
    def unit_roundoff(self) -> float:
        """u: |round(x) - x| <= u |x| in the normal range; for int8, u times the channel's largest magnitude."""
        return 0.5 / INT8_CODES if self.per_channel else 2.0**-self.significand_bits

    @property
    def min_normal(self) -> float:
        """Smallest positive number with the full significand."""
        return 2.0**self.emin

    @property
    def min_subnormal(self) -> float:
        """Smallest positive number, and the spacing of all numbers below `min_normal`."""
        return 2.0 ** (self.emin - self.significand_bits + 1)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype of the stored elements (imports torch)."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def _ieee(name: str, significand_bits: int, emax: int, n_bytes: int, dtype: str) -> Format:
    """An IEEE 754 binary format: emin = 1 - emax, the largest number has all significand bits set."""
    largest = (2.0 - 2.0 ** (1 - significand_bits)) * 2.0**emax
    return Format(name, significand_bits, 1 - emax, largest, n_bytes, dtype)


# IEEE 754-2019 (fp64, fp32, fp16), bfloat16, and the OCP 8-bit Floating Point Specification 1.0 (2023): e5m2 is
# IEEE-like, e4m3 ("fn") gives up infinity to reach 448 = 1.75 * 2^8. int8 is for weights, one scale per output channel.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        _ieee("fp64", 53, 1023, 8, "float64"),
        _ieee("fp32", 24, 127, 4, "float32"),
        _ieee("bf16", 8, 127, 2, "bfloat16"),
        _ieee("fp16", 11, 15, 2, "float16"),
        Format("e4m3", 4, -6, 448.0, 1, "float8_e4m3fn", overflow_to_inf=False),
        _ieee("e5m2", 3, 15, 1, "float8_e5m2"),
        Format("int8", 7, 6, float(INT8_CODES), 1, "int8", per_channel=True),
    )
}


def get_format(name: str) -> Format:
    """The format called `name`.

    Raises:
        UsageError: no such format; the hint lists the nearest names.
    """
    if name not in FORMATS:
        raise UsageError(f"unknown format {name!r}", did_you_mean(name, FORMATS))
    return FORMATS[name]


def holds(a: str, b: str) -> bool:
    """Whether every finite value of format `a` is a value of `b`, so that a cast from `a` to `b` is exact.

    A partial order: bf16 and fp16 are incomparable, and so are e4m3 and e5m2. With significands p_a <= p_b, largest
    numbers max_a <= max_b and smallest numbers min_a >= min_b the spacing of `a` is a multiple of that of `b` in every
    binade; conversely each of the three is witnessed by one value of `a`. Formats are compared without scales, except
    int8, whose values code * scale are rounded to float32 when they are read: they are values of fp32 and fp64 only.
    """
    source, target = get_format(a), get_format(b)
    if source.per_channel or target.per_channel:
        return a == b or (source.per_channel and holds("fp32", b))
    return (
        source.significand_bits <= target.significand_bits
        and source.max <= target.max
        and source.min_subnormal >= target.min_subnormal
    )


def storage_bytes(name: str, numel: int, n_scales: int = 0) -> int:
    """Bytes that `numel` elements take in format `name`, with `n_scales` float32 scales stored beside them.

    int8 has one scale per output channel; fp8 with a per-tensor scale has one.

    Raises:
        UsageError: int8 without a scale.
    """
    fmt = get_format(name)
    if fmt.per_channel and n_scales < 1 and numel:
        raise UsageError("int8 storage needs a scale per output channel", "pass n_scales")
    return numel * fmt.n_bytes + n_scales * SCALE_BYTES
