"""Pooling over windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from cohomcli.verify.arrays import Array, Unsupported, balls, flint
from cohomcli.verify.ops_linear import pair, windows
from cohomcli.verify.ops_real import amax, mean
from cohomcli.verify.table import operation


def _spatial(x: Array, space: int) -> Array:
    """With a batch dimension, which pooling may leave out."""
    return x if x.ndim == space + 2 else x[None]


def _max_pool(x: Array, kernel: Any, stride: Any, padding: Any, dilation: Any, space: int) -> Array:
    sizes = pair(kernel, space)
    steps = pair(stride, space) if stride not in (None, []) else sizes
    frame = [(p, p) for p in pair(padding, space)]
    low = flint().arb.neg_inf()
    padded = np.pad(_spatial(balls(x), space), [(0, 0), (0, 0), *frame], constant_values=low)
    found = windows(padded, sizes, steps, pair(dilation, space))
    largest = amax(found, tuple(range(2 + space, 2 + 2 * space)))
    return largest if x.ndim == space + 2 else largest[0]


@operation("max_pool1d")
def max_pool1d(
    self: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Array:
    """The largest entry of each window; padding never wins."""
    if ceil_mode:
        raise Unsupported("pooling with ceil_mode")
    return _max_pool(self, kernel_size, stride, padding, dilation, 1)


@operation("max_pool2d")
def max_pool2d(
    self: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Array:
    """The largest entry of each window; padding never wins."""
    if ceil_mode:
        raise Unsupported("pooling with ceil_mode")
    return _max_pool(self, kernel_size, stride, padding, dilation, 2)


@operation("max_pool2d_with_indices")
def max_pool2d_with_indices(
    self: Array, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> list[Array]:
    """The largest entry of each window; the indices are not computed, and whoever reads them fails."""
    return [max_pool2d(self, kernel_size, stride, padding, dilation, ceil_mode)]


@operation("avg_pool1d", "avg_pool2d")
def avg_pool(
    self: Array,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """The mean of each window."""
    space = self.ndim - 2
    sizes, frame = pair(kernel_size, space), pair(padding, space)
    if ceil_mode or divisor_override is not None or (any(frame) and not count_include_pad):
        raise Unsupported("average pooling with ceil_mode, an own divisor, or padding left out of the count")
    steps = pair(stride, space) if stride not in (None, []) else sizes
    padded = np.pad(balls(self), [(0, 0), (0, 0), *((p, p) for p in frame)], constant_values=flint().arb(0))
    return mean(windows(padded, sizes, steps, [1] * space), tuple(range(2 + space, 2 + 2 * space)))


@operation("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def adaptive_avg_pool(self: Array, output_size: Any) -> Array:
    """Means over cells floor(i n / m) to ceil((i + 1) n / m)."""
    result = balls(self)
    sizes = [output_size] if isinstance(output_size, int) else list(output_size)
    for offset, m in enumerate(sizes):
        axis = self.ndim - len(sizes) + offset
        n = self.shape[axis]
        cells = [np.take(result, range(i * n // m, -(-(i + 1) * n // m)), axis=axis) for i in range(m)]
        result = np.concatenate([mean(cell, axis, True) for cell in cells], axis=axis)
    return result
