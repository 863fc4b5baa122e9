"""Softmax and the normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cohomcli.verify.arrays import Array, Unsupported, apply, balls, flint
from cohomcli.verify.functions import constant_term, rsqrt
from cohomcli.verify.ops_real import add, mean, mul, total
from cohomcli.verify.table import operation


def _shifted(x: Array, dim: int) -> Array:
    """x minus the double nearest the largest midpoint along `dim`: softmax does not change, exp stays near 1."""
    centre = apply(lambda b: float(constant_term(b).mid()), x).astype(np.float64)
    largest = centre.max(axis=dim, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0.0)
    return np.asarray(x - balls(largest))


@operation("softmax", "_softmax", "_safe_softmax")
def softmax(self: Array, dim: int, dtype: Any = None, **_: Any) -> Array:
    """exp(x_i - c) / sum_j exp(x_j - c) for one c per row; entries of -inf are exactly 0."""
    powers = apply(lambda x: x.exp(), _shifted(balls(self), dim))
    return np.asarray(powers / total(powers, dim, True))


@operation("log_softmax", "_log_softmax")
def log_softmax(self: Array, dim: int, dtype: Any = None, **_: Any) -> Array:
    """x_i - c - log sum_j exp(x_j - c)."""
    x = _shifted(balls(self), dim)
    return np.asarray(x - apply(lambda s: s.log(), total(apply(lambda b: b.exp(), x), dim, True)))


@operation("logsumexp")
def logsumexp(self: Array, dim: Any, keepdim: bool = False) -> Array:
    """log sum_j exp(x_j)."""
    return apply(lambda s: s.log(), total(apply(lambda b: b.exp(), self), dim, keepdim))


def _standardised(x: Array, dims: Sequence[int], eps: float) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(variance + eps) with the biased variance; also the mean and 1 / sqrt(variance + eps)."""
    centre = mean(x, dims, True)
    centred = balls(x) - centre
    spread = mean(centred * centred, dims, True)
    scale = apply(rsqrt, spread + flint().arb(float(eps)))
    return centred * scale, centre, scale


def _affine(x: Array, weight: Array | None, bias: Array | None) -> Array:
    scaled = x if weight is None else mul(x, weight)
    return scaled if bias is None else add(scaled, bias)


@operation("layer_norm")
def layer_norm(
    input: Array,
    normalized_shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Array:
    """(x - mean) / sqrt(var + eps) w + b over the last dimensions, with the biased variance."""
    dims = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    return _affine(_standardised(input, dims, eps)[0], weight, bias)


@operation("native_layer_norm")
def native_layer_norm(
    input: Array, normalized_shape: Sequence[int], weight: Array | None, bias: Array | None, eps: float
) -> list[Array]:
    """The same, with mean and reciprocal deviation."""
    dims = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    x, centre, scale = _standardised(input, dims, eps)
    return [_affine(x, weight, bias), centre, scale]


@operation("rms_norm")
def rms_norm(
    input: Array, normalized_shape: Sequence[int], weight: Array | None = None, eps: float | None = None
) -> Array:
    """x / sqrt(mean x^2 + eps) w."""
    if eps is None:
        raise Unsupported("rms_norm whose epsilon depends on the dtype")
    x = balls(input)
    dims = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    scale = apply(rsqrt, mean(x * x, dims, True) + flint().arb(float(eps)))
    return _affine(x * scale, weight, None)


@operation("group_norm")
def group_norm(
    input: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Array:
    """(x - mean) / sqrt(var + eps) over the channels of a group, then w and b per channel."""
    n, channels = input.shape[:2]
    grouped = input.reshape(n, num_groups, -1)
    x = _standardised(grouped, (2,), eps)[0].reshape(input.shape)
    column = (1, channels, *[1] * (input.ndim - 2))
    return _affine(x, *(None if v is None else np.asarray(v).reshape(column) for v in (weight, bias)))


def _batch_norm(x: Array, weight: Any, bias: Any, centre: Array, spread: Array, eps: float) -> Array:
    column = (1, -1, *[1] * (x.ndim - 2))
    scale = apply(rsqrt, balls(spread) + flint().arb(float(eps)))
    standard = (balls(x) - balls(centre).reshape(column)) * scale.reshape(column)
    return _affine(standard, *(None if v is None else np.asarray(v).reshape(column) for v in (weight, bias)))


@operation("batch_norm", "cudnn_batch_norm")
def batch_norm(
    input: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> Array:
    """(x - m) / sqrt(v + eps) w + b with the stored m and v."""
    if training or running_mean is None or running_var is None:
        raise Unsupported("batch_norm without stored statistics")
    return _batch_norm(input, weight, bias, running_mean, running_var, eps)


@operation("_native_batch_norm_legit_no_training")
def batch_norm_eval(
    input: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array,
    running_var: Array,
    momentum: float,
    eps: float,
) -> list[Array]:
    """The same, as decomposed graphs have it, with two empty statistics."""
    empty = np.zeros(0)
    return [_batch_norm(input, weight, bias, running_mean, running_var, eps), empty, empty]
