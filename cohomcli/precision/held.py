"""One tensor held in its format: the bits that memory or a file keeps, and the values that an op reads from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cohomcli.precision.execute import scale_of, store_value
from cohomcli.precision.formats import get_format
from cohomcli.precision.rounding import choose_scale, dequantize_int8, quantize_int8, round_to
from cohomcli.precision.spec import Vertex


@dataclass(frozen=True)
class HeldTensor:
    """`data` in its format's own dtype; the value is data, data * scale (fp8), or code * scale per channel (int8).

    `scale` is float32: a power of two of shape () for the 8-bit floats, one number per output channel, along `axis`,
    for int8, and None for everything else.
    """

    data: torch.Tensor
    scale: torch.Tensor | None = None
    axis: int = 0

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """The value in `dtype` (float32 or float64), exactly; integers, booleans and complex numbers as they are."""
        if not self.data.is_floating_point() and self.scale is None:
            return self.data
        if self.scale is None:
            return self.data.to(dtype)
        if self.scale.dim():
            return dequantize_int8(self.data, self.scale, self.axis).to(dtype)
        return self.data.to(dtype) * self.scale.to(dtype)

    @property
    def n_bytes(self) -> int:
        """Bytes of the elements and of the scales."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)


def hold(vertex: Vertex, value: torch.Tensor, fmt: str) -> HeldTensor:
    """`value` (float32 or float64) of an op as a store in `fmt` keeps it: `execute.store_value`, in fewer bytes.

    Raises:
        UsageError: unknown format.
    """
    return _held(store_value(vertex, value, fmt), scale_of(vertex, value, fmt), fmt)


def hold_weight(value: torch.Tensor, fmt: str, axis: int = 0) -> HeldTensor:
    """`value` (float32 or float64) of a weight in `fmt`; `axis` is the output channel of an int8 one.

    Raises:
        UsageError: unknown format.
        ValueError: int8 of less than two dimensions.
        AnalysisIncomplete: int8 of non-finite weights.
    """
    target = get_format(fmt)
    if target.per_channel:
        codes, scales = quantize_int8(value, axis)
        return HeldTensor(codes, scales, axis)
    scale = choose_scale(value, fmt) if target.n_bytes == 1 else None
    return _held(round_to(value, fmt, scale), scale, fmt)


def _held(stored: torch.Tensor, scale: float | None, fmt: str) -> HeldTensor:
    dtype = get_format(fmt).torch_dtype
    if scale is None:
        return HeldTensor(stored.to(dtype))
    return HeldTensor((stored / scale).to(dtype), torch.tensor(scale, dtype=torch.float32))
