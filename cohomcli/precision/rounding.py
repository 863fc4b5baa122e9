"""Emulated stores: round a float32 or float64 tensor once, to nearest even, to the values of a narrower format."""

from __future__ import annotations

import math
from typing import Any

import torch

from cohomcli.errors import AnalysisIncomplete
from cohomcli.precision.formats import INT8_CODES, Format, get_format, holds

# A scale beyond these exponents, or its reciprocal, would itself be subnormal in float32.
SCALE_EXPONENTS = (-126, 126)
BLOCK = 1 << 16  # elements rounded at a time: the temporaries stay in the cache, which is 2 to 4 times faster
# (integer view, stored significand bits, exponent bias, exponent mask) of the two carriers.
_LAYOUT = {torch.float32: (torch.int32, 23, 127, 0xFF), torch.float64: (torch.int64, 52, 1023, 0x7FF)}
_CARRIER = {torch.float32: "fp32", torch.float64: "fp64"}


def round_to(x: torch.Tensor, fmt: str, scale: float | None = None, axis: int = 0) -> torch.Tensor:
    """The values of `x` after a store in format `fmt`, in the dtype of `x` (float32 or float64); detached.

    Round to nearest, ties to even, in one rounding: float64 never passes through float32 on its way to 16 bits.
    Subnormals, signed zeros and NaN are kept. What exceeds the largest number after rounding becomes +-inf (fp32, bf16,
    fp16, e5m2) as in IEEE 754, or NaN (e4m3, which has no infinity: the non-saturating mode of the OCP specification;
    infinite inputs too). Nothing saturates silently, unlike torch's own cast to float8_e4m3fn.

    `scale`, a power of two from `choose_scale`, stores x / scale and returns the stored value times scale: for the
    8-bit float formats, where neither step can round in float32.
    int8 quantises per slice along `axis`, the output channel: 0 for linear and convolution weights (out, in, ...),
    1 for a weight that is stored (in, out). `x` itself may be returned where nothing rounds.

    Raises:
        TypeError: `x` is neither float32 nor float64.
        ValueError: the scale is no power of two or not for an 8-bit float; int8 of less than two dimensions.
        UsageError: unknown format.
        AnalysisIncomplete: int8 of non-finite weights.
    """
    if x.dtype not in _LAYOUT:
        raise TypeError(f"round_to emulates stores of float32 or float64 tensors, got {x.dtype}")
    target, x = get_format(fmt), x.detach()
    if scale is not None:
        _check_scale(scale, target)
        return _round(x / scale, target) * scale
    if target.per_channel:
        codes, scales = quantize_int8(x, axis)
        return dequantize_int8(codes, scales, axis).to(x.dtype)
    return _round(x, target)


def overflows(x: torch.Tensor, fmt: str, scale: float | None = None) -> torch.Tensor:
    """Bool tensor: where a finite element of `x` would leave the range of `fmt` when it is rounded (never for int8).

    The comparison is made on |x| before any cast, so it also sees what a saturating cast hides.
    """
    target = get_format(fmt)
    if target.per_channel or holds(_CARRIER.get(x.dtype, fmt), fmt):
        return torch.zeros_like(x, dtype=torch.bool)
    spacing = 2.0 ** (math.frexp(target.max)[1] - target.significand_bits)
    bound = (target.max + spacing / 2) * (1.0 if scale is None else scale)
    magnitude = x.detach().abs()
    # A tie goes to the even neighbour: upwards, out of range, from 1.11...1, but back to 448 = 1.110b in e4m3.
    beyond = magnitude >= bound if target.overflow_to_inf else magnitude > bound
    return beyond & torch.isfinite(x)


def choose_scale(x: torch.Tensor, fmt: str) -> float:
    """The smallest power of two s such that max|x| / s is within the largest number of `fmt`; 1.0 when x is all zero.

    Only finite elements count. A power of two only moves the exponent: scaling itself rounds nothing. The exponent is
    kept within +-126, so that s and 1/s are normal in float32 too.
    """
    target = get_format(fmt)
    finite = torch.nan_to_num(x.detach(), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(finite.abs().amax()) if finite.numel() else 0.0
    if largest == 0.0:
        return 1.0
    (m, e), (top, top_e) = math.frexp(largest), math.frexp(target.max)
    low, high = SCALE_EXPONENTS
    return 2.0 ** min(max(e - top_e + (m > top), low), high)


def quantize_int8(w: torch.Tensor, axis: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 in [-127, 127], shaped like `w`, and scales float32 (w.shape[axis],): w ~ codes * scales along `axis`.

    Symmetric round-to-nearest with scale = max|w| / 127 per output channel (absmax); an all-zero channel has scale 1.

    Raises:
        ValueError: `w` has less than two dimensions, so that a channel would be a single number.
        AnalysisIncomplete: `w` has NaN or infinite elements, or a channel's scale is beyond float32.
    """
    if w.dim() < 2:
        raise ValueError(f"int8 is for weights of at least two dimensions, got shape {tuple(w.shape)}")
    rows = w.detach().double().movedim(axis, 0)
    largest = rows.abs().flatten(1).amax(dim=1) if rows.numel() else rows.new_zeros(rows.shape[0])
    scales = (largest / INT8_CODES).clamp_min(torch.finfo(torch.float32).tiny).float()
    if not bool(torch.isfinite(scales).all()):
        raise AnalysisIncomplete("a weight to store as int8 is not finite in float32", "keep it in a float format")
    scales = torch.where(largest == 0, torch.ones_like(scales), scales)
    codes = torch.round(rows / _column(scales.double(), rows)).clamp_(-INT8_CODES, INT8_CODES)
    return codes.to(torch.int8).movedim(0, axis), scales


def dequantize_int8(codes: torch.Tensor, scales: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """The float32 weights that int8 `codes` stand for: code * scale in float32, rounded once, as kernels compute it."""
    rows = codes.movedim(axis, 0).float()
    return (rows * _column(scales.float(), rows)).movedim(0, axis)


def _column(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *([1] * (rows.dim() - 1)))


def _check_scale(scale: float, target: Format) -> None:
    low, high = SCALE_EXPONENTS
    if target.n_bytes != 1 or target.per_channel:
        raise ValueError(f"a per-tensor scale is for the 8-bit float formats, not {target.name}")
    if not (scale > 0 and math.frexp(scale)[0] == 0.5 and low <= math.frexp(scale)[1] - 1 <= high):
        raise ValueError(f"a scale is a power of two between 2^{low} and 2^{high}, got {scale!r}")


def _round(x: torch.Tensor, target: Format) -> torch.Tensor:
    if holds(_CARRIER[x.dtype], target.name):
        return x
    if target.name == "fp32" or (x.dtype == torch.float32 and target.n_bytes == 2):
        return x.to(target.torch_dtype).to(x.dtype)  # one correctly rounded conversion of the hardware or of c10
    flat = x.contiguous().view(-1)
    out = torch.empty_like(flat)
    for start in range(0, flat.numel(), BLOCK):
        source = flat[start : start + BLOCK]
        out[start : start + BLOCK] = _overflow(_nearest_even(source, target), source, target)
    return out.view(x.shape)


def _nearest_even(x: torch.Tensor, target: Format) -> torch.Tensor:
    """Round to `target` as if its exponent range had no upper end.

    Adding and subtracting c = 1.5 * 2^(carrier bits) * q makes the carrier's own addition round x to a multiple of q,
    ties to even (c / q is even), where q is the spacing of `target` at x: exact for |x| <= 2^p q because the sum stays
    in the binade of c (the "magic constant" of Dekker and Kahan).
    """
    integer, mantissa, bias, mask = _LAYOUT[x.dtype]
    top = math.frexp(target.max)[1]  # beyond the top binade the result only has to stay out of range
    exponent = ((x.view(integer) >> mantissa) & mask) - bias
    exponent = exponent.clamp_(target.emin, top) - target.significand_bits + 1
    constant = (((exponent + mantissa + bias) << mantissa) | (1 << (mantissa - 1))).view(x.dtype)
    return torch.copysign((x + constant).sub_(constant), x)  # the sign of zero is lost in the sum


def _overflow(rounded: torch.Tensor, x: torch.Tensor, target: Format) -> torch.Tensor:
    beyond: Any = rounded.abs() > target.max
    if target.overflow_to_inf:
        return torch.where(beyond, torch.copysign(torch.full_like(x, math.inf), x), rounded)
    return rounded.masked_fill_(beyond, math.nan)
