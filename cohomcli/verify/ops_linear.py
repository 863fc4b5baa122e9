"""Linear maps, matrix products, convolutions and attention; exact weights go through `products`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cohomcli.verify.arrays import Array, Unsupported, balls, is_object
from cohomcli.verify.ops_exact import where
from cohomcli.verify.ops_norm import softmax
from cohomcli.verify.ops_real import add, mul
from cohomcli.verify.products import dense, product
from cohomcli.verify.table import operation


def multiply(a: Array, b: Array) -> Array:
    """The product of two matrices, at least one of them with balls or both exact."""
    if not is_object(b):
        return product(balls(a), b)
    if not is_object(a):
        return product(b.T, a.T).T
    return dense(a, b)


@operation("linear")
def linear(input: Array, weight: Array, bias: Array | None = None) -> Array:
    """x W^T + b."""
    rows = input.reshape(-1, input.shape[-1])
    result = multiply(rows, weight.T).reshape(*input.shape[:-1], *weight.shape[:-1])
    return result if bias is None else add(result, bias)


@operation("addmm")
def addmm(self: Array, mat1: Array, mat2: Array, *, beta: Any = 1, alpha: Any = 1) -> Array:
    """beta b + alpha x W."""
    result = multiply(mat1, mat2)
    scaled = result if alpha == 1 else mul(result, alpha)
    return add(scaled, self if beta == 1 else mul(self, beta))


@operation("mm")
def mm(self: Array, mat2: Array) -> Array:
    """A B."""
    return multiply(self, mat2)


@operation("mv", "dot", "matmul", "bmm")
def matmul(self: Array, other: Array) -> Array:
    """Products of the last two dimensions, the others broadcast; vectors are rows on the left, columns on the right."""
    a = self[None, :] if self.ndim == 1 else self
    b = other[:, None] if other.ndim == 1 else other
    if b.ndim == 2:
        result = multiply(a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[-1])
    else:
        result = _batched(a, b)
    if self.ndim == 1:
        result = result[..., 0, :]
    return np.asarray(result[..., 0] if other.ndim == 1 else result)


def _batched(a: Array, b: Array) -> Array:
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left, right = np.broadcast_to(a, (*lead, *a.shape[-2:])), np.broadcast_to(b, (*lead, *b.shape[-2:]))
    out = np.empty((*lead, a.shape[-2], b.shape[-1]), dtype=object)
    for place in np.ndindex(*lead):
        out[place] = multiply(left[place], right[place])
    return out


@operation("baddbmm")
def baddbmm(self: Array, batch1: Array, batch2: Array, *, beta: Any = 1, alpha: Any = 1) -> Array:
    """beta C + alpha A B, batch by batch."""
    return add(mul(self, beta), mul(matmul(batch1, batch2), alpha))


@operation("scaled_dot_product_attention")
def attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """softmax(Q K^T scale + mask) V, scale 1 / sqrt(head width) unless given."""
    if dropout_p:
        raise Unsupported("dropout in attention")
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = np.repeat(key, repeats, axis=-3), np.repeat(value, repeats, axis=-3)
    root = balls(np.array(float(query.shape[-1])))[()].sqrt()
    factor = 1 / root if scale is None else balls(np.array(float(scale)))[()]
    scores = matmul(query, np.swapaxes(key, -1, -2)) * factor
    mask = np.tril(np.ones(scores.shape[-2:], dtype=bool)) if is_causal else attn_mask
    if mask is not None and mask.dtype == bool:
        scores = where(np.broadcast_to(mask, scores.shape), scores, -math.inf)
    elif mask is not None:
        scores = add(scores, mask)
    return matmul(softmax(scores, -1), value)


def pair(value: Any, count: int) -> list[int]:
    """`count` integers from one or several."""
    items = [value] if isinstance(value, int) else list(value)
    return items * count if len(items) == 1 else items


@operation("conv1d", "conv2d", "conv3d")
def conv(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Array:
    """Cross-correlation, as a product of patches with the flattened kernels, group by group."""
    space = weight.ndim - 2
    steps, spread = pair(stride, space), pair(dilation, space)
    if isinstance(padding, str):
        if padding not in ("valid", "same") or (padding == "same" and any(s != 1 for s in steps)):
            raise Unsupported(f"padding {padding!r}")
        reach = [d * (k - 1) for d, k in zip(spread, weight.shape[2:], strict=True)]
        frame = [(r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach]
    else:
        frame = [(p, p) for p in pair(padding, space)]
    x = np.pad(input, [(0, 0), (0, 0), *frame], constant_values=balls(0.0)[()] if is_object(input) else 0.0)
    patches = windows(x, weight.shape[2:], steps, spread)  # (N, C, *out, *kernel)
    shape = patches.shape[2 : 2 + space]
    parts = []
    for g in range(groups):
        channels, kernels = np.split(patches, groups, axis=1)[g], np.split(weight, groups, axis=0)[g]
        rows = np.moveaxis(channels, 1, 1 + space).reshape(input.shape[0] * math.prod(shape), -1)
        result = multiply(rows, kernels.reshape(kernels.shape[0], -1).T)
        parts.append(np.moveaxis(result.reshape(input.shape[0], *shape, -1), -1, 1))
    out = np.concatenate(parts, axis=1)
    return out if bias is None else add(out, np.asarray(bias).reshape(-1, *[1] * space))


@operation("convolution")
def convolution(
    input: Array,
    weight: Array,
    bias: Array | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Array:
    """The decomposed form of the same."""
    if transposed:
        raise Unsupported("transposed convolution")
    return conv(input, weight, bias, stride, padding, dilation, groups)


def windows(x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Array:
    """Patches (N, C, *out, *kernel) of x (N, C, *space), as a view."""
    space = len(kernel)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + space)))
    keys = [
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in stride),
        *(slice(None, None, d) for d in dilation),
    ]
    return np.asarray(view[tuple(keys)])
