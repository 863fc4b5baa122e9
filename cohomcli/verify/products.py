"""Products of a ball matrix with an exact matrix, through exact integer slices and ordinary float64 products.

Midpoints are truncated to fixed-point integers and cut into digits of 16 bits, the exact matrix into slices of as many
bits as keep every sum of products below 2^53. Each product of a digit matrix with a slice is then exact in float64, in
whatever order a BLAS adds (Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix multiplication", 2012),
and the integers are put together again. Radii are multiplied in float64 and inflated by a bound of its rounding errors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.verify.arrays import Array, balls, flint

DIGIT = 16  # bits of a digit of the midpoints: what two bytes hold
GUARD = 16  # bits kept beyond the working precision
MOST_SLICES = 40
MOST_TERMS = 1 << 20
CHUNK_BYTES = 1 << 27  # of a float64 copy of some columns of the exact matrix
_TINY = 1e-300

Floats = NDArray[np.float64]


def product(x: Array, w: Array) -> Array:
    """x @ w for balls x (n, K) and exact w (K, m), as balls (n, m) with rigorous radii.

    The radius of an entry is at most sum_k (rad x_k + 2^-q) |w_k|, up to the inflation, where 2^-q is the unit the
    row's midpoints are truncated to, 2^-(precision + 16) of the row's largest.
    """
    n, terms = x.shape
    if terms == 0:
        return balls(np.zeros((n, w.shape[1])))
    rows = _Rows(x)
    if not rows.finite or terms > MOST_TERMS:
        return dense(x, balls(w))
    out = np.empty((n, w.shape[1]), dtype=object)
    step = max(1, CHUNK_BYTES // (8 * terms))
    for start in range(0, w.shape[1], step):
        columns = np.ascontiguousarray(w[:, start : start + step], dtype=np.float64)
        slices = _slices(columns, 53 - DIGIT - math.ceil(math.log2(terms)))
        if slices is None:
            out[:, start : start + step] = dense(x, balls(columns))
        else:
            out[:, start : start + step] = rows.times(columns, *slices)
    return out


def dense(x: Array, y: Array) -> Array:
    """x @ y of two ball matrices by `arb_mat`, or entry by entry where the entries are power series."""
    (n, terms), m = x.shape, y.shape[1]
    arb = flint().arb
    if terms == 0:
        return balls(np.zeros((n, m)))
    entries = [*x.ravel(), *y.ravel()]
    if not all(type(entry) is arb for entry in entries):
        return np.asarray(x @ y, dtype=object).reshape(n, m)
    matrix = flint().arb_mat
    result = matrix(n, terms, entries[: n * terms]) * matrix(terms, m, entries[n * terms :])
    out = np.empty(n * m, dtype=object)
    out[:] = result.entries()
    return out.reshape(n, m)


def _slices(w: Floats, bits: int) -> tuple[list[Floats], int] | None:
    """Integer matrices S_k, |S_k| < 2^bits, and `top` with w = sum_k S_k 2^(top - bits (k + 1)) exactly.

    None when the entries are too far apart, or not finite.
    """
    largest = float(np.abs(w).max()) if w.size else 0.0
    if not math.isfinite(largest):
        return None
    top = math.frexp(largest)[1]
    rest = np.ldexp(w, -top)
    # ldexp is exact unless it made a subnormal; then a nonzero entry is below 2^-1021 and the slices run out.
    if bool(((rest != 0) & (np.abs(rest) < 2.0**-1000)).any()) or bool(((rest == 0) & (w != 0)).any()):
        return None
    found: list[Floats] = []
    while rest.any():
        if len(found) == MOST_SLICES:
            return None
        rest = np.ldexp(rest, bits)
        whole = np.trunc(rest)
        found.append(whole)
        rest = rest - whole
    return found, top


class _Rows:
    """The left factor: digits of its midpoints and scaled radii; `finite` says whether it could be prepared."""

    def __init__(self, x: Array) -> None:
        module = flint()
        self.arb, self.precision = module.arb, int(module.ctx.prec)
        self.shape = x.shape
        flat = x.ravel().tolist()
        self.finite = all(type(entry) is self.arb and entry.is_finite() for entry in flat)
        if not self.finite:
            return
        self.count = (self.precision + GUARD + DIGIT - 1) // DIGIT
        parts = [entry.mid().man_exp() for entry in flat]
        pairs = [(int(mantissa), int(exponent)) for mantissa, exponent in parts]
        terms = x.shape[1]
        self.units = [self._unit(pairs[i : i + terms]) for i in range(0, len(pairs), terms)]
        self.digits = self._digits([_fixed(pair, self.units[i // terms]) for i, pair in enumerate(pairs)])
        self.radii = self._radii(flat)

    def _unit(self, row: list[tuple[int, int]]) -> int:
        """The exponent of a row's fixed-point unit: its largest midpoint has at most DIGIT * count bits."""
        tops = [mantissa.bit_length() + exponent for mantissa, exponent in row if mantissa]
        return max(tops, default=0) - DIGIT * self.count

    def _digits(self, numbers: list[int]) -> Floats:
        """(count, n, K) float64 digits of |number|, least significant first, with the number's sign."""
        width = DIGIT // 8 * self.count
        raw = b"".join(abs(number).to_bytes(width, "little") for number in numbers)
        digits = np.frombuffer(raw, dtype="<u2").reshape(*self.shape, self.count).astype(np.float64)
        signs = np.array([-1.0 if number < 0 else 1.0 for number in numbers]).reshape(self.shape)
        return np.ascontiguousarray(np.moveaxis(digits * signs[..., None], -1, 0))

    def _radii(self, flat: list[Any]) -> Floats:
        """Upper bounds of the radii with the truncation added, row by row in units of 2^self.scales[row]."""
        terms = self.shape[1]
        out = np.empty(self.shape)
        self.scales = []
        for i, unit in enumerate(self.units):
            radii = [entry.rad().man_exp() for entry in flat[i * terms : (i + 1) * terms]]
            known = [(int(mantissa), int(exponent)) for mantissa, exponent in radii]
            tops = [mantissa.bit_length() + exponent for mantissa, exponent in known if mantissa]
            scale = max([unit, *tops])
            self.scales.append(scale)
            # Relative to the row's largest; what is too small for a double is raised to the smallest one we allow.
            out[i] = [max(_scaled(pair, scale), _TINY) if pair[0] else 0.0 for pair in known]
            out[i] += max(_scaled((1, unit), scale), _TINY)
        return out * (1.0 + 2.0**-50)

    def times(self, columns: Floats, slices: list[Floats], top: int) -> Array:
        """The product with exact columns (K, m) given by their slices."""
        (n, terms), m = self.shape, columns.shape[1]
        bits = 53 - DIGIT - math.ceil(math.log2(terms))
        total = np.zeros(n * m, dtype=object)
        flat = self.digits.reshape(self.count * n, terms)
        for part in slices:
            total = total * (1 << bits) + _assemble((flat @ part).reshape(self.count, n * m))
        # Nonnegative terms in any order: the computed sum is at least (1 - K 2^-52) times the true one.
        radii = (self.radii @ np.abs(columns)) * (1.0 + (terms + 8) * 2.0**-52) + terms * _TINY
        shift = top - bits * len(slices)
        return self._joined(total, radii.ravel().tolist(), shift, m)

    def _joined(self, total: Array, radii: list[float], shift: int, m: int) -> Array:
        arb = self.arb
        powers = [arb((1, scale)) for scale in self.scales]
        out = np.empty(len(radii), dtype=object)
        out[:] = [
            arb((mid, self.units[i // m] + shift), (arb(radius) * powers[i // m]).upper())
            for i, (mid, radius) in enumerate(zip(total.tolist(), radii, strict=True))
        ]
        return out.reshape(self.shape[0], m)


def _fixed(pair: tuple[int, int], unit: int) -> int:
    """mantissa 2^exponent in units of 2^unit, rounded towards zero: off by less than one unit."""
    mantissa, exponent = pair
    shift = exponent - unit
    if shift >= 0:
        return mantissa << shift
    return -((-mantissa) >> -shift) if mantissa < 0 else mantissa >> -shift


def _scaled(pair: tuple[int, int], scale: int) -> float:
    """mantissa 2^(exponent - scale) with a mantissa of at most 30 bits; 0.0 below the doubles."""
    mantissa, exponent = pair
    return math.ldexp(float(mantissa), max(exponent - scale, -2000))


def _assemble(digits: Floats) -> Array:
    """sum_i digits[i] 2^(DIGIT i) as Python integers, from exact float64 (count, entries) below 2^53."""
    count, entries = digits.shape
    whole = digits.astype(np.int64)
    low = np.empty((entries, count), dtype="<u2")
    carry = np.zeros(entries, dtype=np.int64)
    for i in range(count):
        value = whole[i] + carry  # below 2^53 + 2^38
        low[:, i] = value & ((1 << DIGIT) - 1)
        carry = value >> DIGIT  # floors, so that the digit kept is not negative
    width, raw, high = DIGIT // 8 * count, low.tobytes(), carry.tolist()
    out = np.empty(entries, dtype=object)
    out[:] = [
        int.from_bytes(raw[i * width : (i + 1) * width], "little") + (high[i] << (DIGIT * count))
        for i in range(entries)
    ]
    return out
