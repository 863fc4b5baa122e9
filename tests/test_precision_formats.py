"""Formats and emulated stores against tables of all bit patterns, a midpoint oracle, numpy, torch and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.precision.formats import FORMATS, get_format, holds, storage_bytes
from cohomcli.precision.rounding import choose_scale, dequantize_int8, overflows, quantize_int8, round_to

FLOATS = ["fp64", "fp32", "bf16", "fp16", "e4m3", "e5m2"]
SMALL = ["bf16", "fp16", "e4m3", "e5m2"]
FIELDS = {"bf16": (8, 7), "fp16": (5, 10), "e4m3": (4, 3), "e5m2": (5, 2)}  # exponent and trailing significand bits


def decode(fmt: str) -> np.ndarray:
    """Every bit pattern's value by the definition of the encoding, in float64, pattern order."""
    exponent_bits, trailing = FIELDS[fmt]
    bias = 2 ** (exponent_bits - 1) - 1
    values = []
    for pattern in range(2 ** (1 + exponent_bits + trailing)):
        fraction = pattern % 2**trailing
        exponent = (pattern >> trailing) % 2**exponent_bits
        sign = -1.0 if pattern >> (exponent_bits + trailing) else 1.0
        if exponent == 0:
            value = fraction * 2.0 ** (1 - bias - trailing)
        else:
            value = (2**trailing + fraction) * 2.0 ** (exponent - bias - trailing)
        last = exponent == 2**exponent_bits - 1
        if fmt == "e4m3":
            value = math.nan if last and fraction == 7 else value
        elif last:
            value = math.nan if fraction else math.inf
        values.append(math.copysign(value, sign))
    return np.array(values)


TABLES = {fmt: decode(fmt) for fmt in SMALL}


def ladder(fmt: str) -> np.ndarray:
    """The non-negative values in order; index parity is the parity of the bit pattern; last: where overflow begins."""
    values = TABLES[fmt]
    finite = values[: len(values) // 2]
    finite = finite[np.isfinite(finite)]
    return np.append(finite, 2 * finite[-1] - finite[-2])


def oracle(x: np.ndarray, fmt: str) -> np.ndarray:
    """Nearest neighbour of |x| in the sorted table, decided at the exact midpoint, ties by parity."""
    steps = ladder(fmt)
    beyond = math.nan if fmt == "e4m3" else math.inf
    a = np.minimum(np.abs(x), steps[-1])
    upper = np.clip(np.searchsorted(steps, a, side="left"), 1, len(steps) - 1)
    middle = (steps[upper - 1] + steps[upper]) / 2
    even = np.where(upper % 2 == 0, upper, upper - 1)
    index = np.where(a > middle, upper, np.where(a < middle, upper - 1, even))
    out = np.where(index == len(steps) - 1, beyond, steps[index])
    return np.copysign(np.where(np.isnan(x), math.nan, out), x)


def same(got: torch.Tensor, want: np.ndarray) -> None:
    """Equal values, equal NaN positions, equal signs of zero."""
    result = got.double().numpy()
    np.testing.assert_array_equal(result, want)
    number = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(result[number]), np.signbit(want[number]))


@pytest.mark.parametrize("fmt", FLOATS)
def test_table_agrees_with_torch_finfo(fmt: str) -> None:
    f, info = get_format(fmt), torch.finfo(get_format(fmt).torch_dtype)
    assert f.unit_roundoff == info.eps / 2
    assert (f.max, f.min_normal, f.min_subnormal) == (info.max, info.smallest_normal, info.eps * info.smallest_normal)
    assert 8 * f.n_bytes == info.bits


@pytest.mark.parametrize("fmt", SMALL)
def test_decoded_patterns_agree_with_torch(fmt: str) -> None:
    n = len(TABLES[fmt])
    patterns = torch.from_numpy(np.arange(n).astype(np.uint16 if n > 256 else np.uint8))
    same(patterns.view(get_format(fmt).torch_dtype), TABLES[fmt])


@pytest.mark.parametrize("carrier", [torch.float32, torch.float64])
@pytest.mark.parametrize("fmt", SMALL)
def test_every_bit_pattern_is_a_fixed_point(fmt: str, carrier: torch.dtype) -> None:
    x = torch.from_numpy(TABLES[fmt]).to(carrier)
    got = round_to(x, fmt)
    assert got.dtype is carrier
    same(got, TABLES[fmt])


@pytest.mark.parametrize("fmt", SMALL)
def test_midpoints_go_to_even_and_their_float64_neighbours_to_the_nearest(fmt: str) -> None:
    steps = ladder(fmt)
    middle = (steps[:-1] + steps[1:]) / 2
    even = np.where(np.arange(len(middle)) % 2 == 0, steps[:-1], steps[1:])
    top = math.nan if fmt == "e4m3" else math.inf
    up, even = np.append(steps[1:-1], top), np.where(even == steps[-1], top, even)
    for sign in (1.0, -1.0):
        cases = [(middle, even), (np.nextafter(middle, np.inf), up), (np.nextafter(middle, 0), steps[:-1])]
        for x, want in cases:
            same(round_to(torch.from_numpy(sign * x), fmt), sign * want)
            np.testing.assert_array_equal(sign * want, oracle(sign * x, fmt))


def wide(n: int, dtype: type) -> np.ndarray:
    """Numbers of every magnitude `dtype` has, subnormals, infinities and NaN included: uniform bit patterns."""
    rng = np.random.default_rng(7)
    integer = np.uint32 if dtype is np.float32 else np.uint64
    return rng.integers(0, np.iinfo(integer).max, n, dtype=integer, endpoint=True).view(dtype)


def inside(n: int, fmt: str) -> np.ndarray:
    """Float64 numbers of random significand over the binades of `fmt`, one beyond either end."""
    f, rng = get_format(fmt), np.random.default_rng(8)
    low, high = math.log2(f.min_subnormal) - 2, math.log2(f.max) + 1
    return rng.choice([-1.0, 1.0], n) * np.exp2(rng.uniform(low, high, n))


def narrow(n: int, fmt: str) -> np.ndarray:
    """The same numbers in float32, where bf16's largest ones become infinite."""
    with np.errstate(over="ignore"):
        return inside(n, fmt).astype(np.float32)


@pytest.mark.parametrize("fmt", SMALL)
def test_random_float64_and_float32_agree_with_the_midpoint_oracle(fmt: str) -> None:
    for x in (inside(100_000, fmt), wide(100_000, np.float64), wide(100_000, np.float32), narrow(100_000, fmt)):
        with np.errstate(invalid="ignore"):
            want = oracle(x.astype(np.float64), fmt)
        same(round_to(torch.from_numpy(x), fmt), want)


def test_float64_agrees_with_numpy_where_numpy_has_the_format() -> None:
    x = np.concatenate([inside(100_000, "fp16"), wide(100_000, np.float64)])
    with np.errstate(over="ignore", invalid="ignore"):
        same(round_to(torch.from_numpy(x), "fp16"), x.astype(np.float16).astype(np.float64))
        same(round_to(torch.from_numpy(x), "fp32"), x.astype(np.float32).astype(np.float64))


@pytest.mark.parametrize("fmt", SMALL)
def test_float32_agrees_with_torch_casts_where_torch_does_not_saturate(fmt: str) -> None:
    x = torch.from_numpy(np.concatenate([narrow(100_000, fmt), wide(100_000, np.float32)]))
    if fmt == "e4m3":
        x = x[x.abs() <= 464]
    same(round_to(x, fmt), x.to(get_format(fmt).torch_dtype).double().numpy())


@pytest.mark.parametrize(("fmt", "bits"), [("bf16", 8), ("fp16", 11), ("e4m3", 4), ("e5m2", 3)])
def test_a_float64_is_rounded_once_not_through_float32(fmt: str, bits: int) -> None:
    # Just above the midpoint of 1 and its successor; float32 would drop the last bit and then tie to 1.
    x = torch.tensor([1 + 2.0**-bits + 2.0**-40], dtype=torch.float64)
    assert round_to(x, fmt).item() == 1 + 2.0 ** (1 - bits)
    assert round_to(x.float(), fmt).item() == 1.0
    # The same among the subnormals, where the float32 detour fails only for the formats that share its range.
    tiny = get_format(fmt).min_subnormal
    y = torch.tensor([1.5 * tiny * (1 + 2.0**-50), 0.5 * tiny * (1 + 2.0**-50)], dtype=torch.float64)
    assert round_to(y, fmt).tolist() == [2 * tiny, tiny]


@pytest.mark.parametrize(
    ("fmt", "last", "first"),
    [
        ("fp16", 65519.99, 65520.0),
        ("e5m2", 61439.99, 61440.0),
        ("e4m3", 464.0, 464.01),
        ("bf16", math.nextafter(255.5 * 2.0**120, 0), 255.5 * 2.0**120),
        ("fp32", math.nextafter((2 - 2.0**-24) * 2.0**127, 0), (2 - 2.0**-24) * 2.0**127),
    ],
)
def test_overflow_begins_half_a_step_beyond_the_largest_number(fmt: str, last: float, first: float) -> None:
    x = torch.tensor([last, first, -last, -first, math.inf, math.nan], dtype=torch.float64)
    assert overflows(x, fmt).tolist() == [False, True, False, True, False, False]
    f, got = get_format(fmt), round_to(x, fmt)
    assert got[0] == f.max
    assert got[2] == -f.max
    marks = got[[1, 3, 4]]
    assert bool(torch.isnan(marks).all()) if fmt == "e4m3" else marks.tolist() == [math.inf, -math.inf, math.inf]


@pytest.mark.parametrize("fmt", [*FLOATS, "int8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_overflows_says_exactly_where_rounding_leaves_the_range(fmt: str, dtype: type) -> None:
    x = torch.from_numpy(wide(20_000, dtype)).reshape(200, 100)
    if fmt == "int8":
        assert not overflows(x, fmt).any()
        return
    assert torch.equal(overflows(x, fmt), torch.isfinite(x) & ~torch.isfinite(round_to(x, fmt)))


def test_stores_that_lose_nothing_return_their_input() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, requires_grad=True)
    assert torch.equal(round_to(x, "fp32"), x)
    assert torch.equal(round_to(x, "fp64"), x)
    assert not round_to(x, "fp16").requires_grad
    assert round_to(torch.tensor(3.1), "e4m3").item() == 3.0
    assert round_to(torch.zeros(0, 3), "e5m2").shape == (0, 3)
    strided = torch.randn(6, 4, dtype=torch.float64).t()[:, ::2]
    same(round_to(strided, "fp16"), oracle(strided.numpy(), "fp16"))


def test_only_float_tensors_and_known_formats_are_rounded() -> None:
    with pytest.raises(TypeError, match="float16"):
        round_to(torch.zeros(2, dtype=torch.float16), "e4m3")
    with pytest.raises(UsageError, match="unknown format 'fp61'; did you mean"):
        round_to(torch.zeros(2), "fp61")


@pytest.mark.parametrize(("a", "b"), list(itertools.product(FLOATS, FLOATS)))
def test_holds_means_that_every_value_survives(a: str, b: str) -> None:
    if a in TABLES:
        finite = TABLES[a][np.isfinite(TABLES[a])]
    else:  # the values that decide: extremes, and a full significand in the middle
        f = get_format(a)
        finite = np.array([f.max, f.min_subnormal, 1 + 2 * f.unit_roundoff])
    x = torch.from_numpy(finite)
    assert holds(a, b) == torch.equal(round_to(x, b), x)


def test_the_order_of_formats_is_partial() -> None:
    assert not holds("bf16", "fp16")
    assert not holds("fp16", "bf16")
    assert not holds("e4m3", "e5m2")
    assert not holds("e5m2", "e4m3")
    assert [f for f in FORMATS if holds("int8", f)] == ["fp64", "fp32", "int8"]
    assert [f for f in FORMATS if holds(f, "int8")] == ["int8"]


def test_bytes_count_elements_and_scales() -> None:
    assert [storage_bytes(f, 100) for f in FLOATS] == [800, 400, 200, 200, 100, 100]
    assert storage_bytes("int8", 100, n_scales=10) == 140
    assert storage_bytes("e4m3", 100, n_scales=1) == 104
    with pytest.raises(UsageError, match="scale per output channel"):
        storage_bytes("int8", 100)


@given(st.floats(-100, 120), st.sampled_from(["e4m3", "e5m2"]))
def test_the_scale_is_the_smallest_power_of_two_that_fits(log: float, fmt: str) -> None:
    f = get_format(fmt)
    x = torch.tensor([2.0**log, -(2.0**log) / 3, 0.0, math.inf, math.nan], dtype=torch.float64)
    scale = choose_scale(x, fmt)
    assert math.frexp(scale)[0] == 0.5
    assert 2.0**log / scale <= f.max < 2 * 2.0**log / scale
    assert not overflows(x, fmt, scale).any()


def test_a_number_that_just_fits_does_not_double_the_scale() -> None:
    for fmt in ("e4m3", "e5m2", "fp16"):
        largest = get_format(fmt).max
        assert [choose_scale(torch.tensor([m * largest]), fmt) for m in (0.5, 1.0, 1.01, 2.0)] == [0.5, 1.0, 2.0, 2.0]


def test_scaling_by_a_power_of_two_commutes_with_rounding() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for k in (-60, -3, 0, 17, 60):
        assert torch.equal(round_to(x * 2.0**k, "e4m3", scale=2.0**k), round_to(x, "e4m3") * 2.0**k)
    big = torch.tensor([1e30, -3e29, 1e-8])
    assert torch.isnan(round_to(big, "e4m3")[0])
    scaled = round_to(big, "e4m3", choose_scale(big, "e4m3"))
    assert torch.isfinite(scaled).all()
    assert abs(scaled[0] / big[0] - 1) <= get_format("e4m3").unit_roundoff
    assert choose_scale(torch.zeros(3), "e4m3") == 1.0
    assert choose_scale(torch.zeros(0), "e5m2") == 1.0


def test_scales_outside_their_meaning_are_refused() -> None:
    for scale in (0.0, -2.0, 3.0, math.inf, math.nan, 2.0**127, 2.0**-127):
        with pytest.raises(ValueError, match="power of two"):
            round_to(torch.ones(2), "e4m3", scale=scale)
    for fmt in ("fp16", "int8"):
        with pytest.raises(ValueError, match="8-bit float"):
            round_to(torch.ones(2, 2), fmt, scale=2.0)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_int8_codes_are_nearest_within_their_channel(axis: int) -> None:
    torch.manual_seed(0)
    w = torch.randn(5, 7, 3, dtype=torch.float64) * torch.logspace(-30, 30, 5, dtype=torch.float64)[:, None, None]
    codes, scales = quantize_int8(w, axis)
    back = dequantize_int8(codes, scales, axis)
    assert codes.shape == w.shape
    assert scales.shape == (w.shape[axis],)
    assert codes.dtype is torch.int8
    assert back.dtype is torch.float32
    for channel, code, value, scale in zip(
        w.movedim(axis, 0), codes.movedim(axis, 0), back.movedim(axis, 0), scales.tolist(), strict=True
    ):
        assert scale == float(np.float32(channel.abs().max().item() / 127))
        want = [round(v / scale) for v in channel.flatten().tolist()]  # Python rounds halves to even, too
        assert code.flatten().tolist() == want
        assert max(map(abs, want)) == 127
        error = (value.double() - channel).abs().max().item()
        assert error <= scale / 2 * (1 + 1e-5)
        assert error <= get_format("int8").unit_roundoff * channel.abs().max().item() * (1 + 1e-5)
    assert torch.equal(round_to(w, "int8", axis=axis), back.double())


def test_int8_edge_cases() -> None:
    w = torch.tensor([[0.0, -0.0], [1e-44, 0.0], [254.0, 1.0], [-127.0, 0.5]])
    codes, scales = quantize_int8(w)
    assert codes.tolist() == [[0, 0], [0, 0], [127, 0], [-127, 0]]  # 1 / 2 and 0.5 / 1 are ties: to the even code 0
    assert scales.tolist()[0] == 1.0
    assert torch.equal(quantize_int8(-w)[0], -codes)
    for bad in (math.nan, math.inf):
        with pytest.raises(AnalysisIncomplete, match="not finite"):
            quantize_int8(torch.tensor([[bad, 1.0]]))
    with pytest.raises(ValueError, match="two dimensions"):
        round_to(torch.ones(3), "int8")
    assert round_to(torch.zeros(3, 0), "int8").shape == (3, 0)
