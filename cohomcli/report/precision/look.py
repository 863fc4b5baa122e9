"""How formats and error norms are called and coloured, the same in every sentence, table and figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cohomcli.precision.spec import ErrorNorm
from cohomcli.report.names import clean

# Okabe & Ito's palette, apart in lightness too; a format has one colour everywhere.
COLOUR = {
    "fp64": "#444444",
    "fp32": "#0072B2",
    "bf16": "#E69F00",
    "fp16": "#009E73",
    "int8": "#56B4E9",
    "e4m3": "#CC79A7",
    "e5m2": "#F0E442",
}
OTHER = "#b0b7bf"

FORMAT = {
    "fp64": "53 significand bits, to 1.8e308; 8 bytes",
    "fp32": "24 significand bits, to 3.4e38; 4 bytes",
    "bf16": "8 significand bits, to 3.4e38; 2 bytes",
    "fp16": "11 significand bits, to 65,504; 2 bytes",
    "int8": "codes from -127 to 127 with one scale per output channel, for weights only; 1 byte",
    "e4m3": "4 significand bits, a power-of-two scale per tensor; 1 byte",
    "e5m2": "3 significand bits, a power-of-two scale per tensor; 1 byte",
}
WEIGHT_ONLY = frozenset({"int8"})
"""Formats that no operation's result may have, by rule: their obstruction sets are read for weights alone."""

_NORM: dict[ErrorNorm, str] = {
    "rel-l2": "relative L2 error",
    "max-abs": "largest absolute error",
    "kl": "KL divergence (nats)",
}
_NORM_MEANING: dict[ErrorNorm, str] = {
    "rel-l2": "||y' - y|| / ||y|| over all inputs together, y the float64 output; several outputs add in squares",
    "max-abs": "the largest |y' - y| of any output entry, y the float64 output",
    "kl": "mean over positions of KL(softmax(y) || softmax(y')) in nats, y the float64 logits",
}


def norm_name(norm: ErrorNorm) -> str:
    """The error norm in words."""
    return _NORM[norm]


def norm_meaning(norm: ErrorNorm) -> str:
    """The error norm as a formula."""
    return _NORM_MEANING[norm]


def colour_of(fmt: str) -> str:
    """The colour of a format."""
    return COLOUR.get(fmt, OTHER)


def in_order(formats: Iterable[str]) -> list[str]:
    """Each format once, widest first; unknown names last, by name."""
    known = list(COLOUR)
    return sorted(set(formats), key=lambda f: (known.index(f) if f in known else len(known), f))


def counted(counts: Mapping[str, int]) -> str:
    """`926 fp16, 155 fp32`: formats with their counts, most frequent first."""
    most = sorted(in_order(counts), key=lambda f: -counts[f])
    return ", ".join(f"{counts[f]:,} {clean(f, 12)}" for f in most if counts[f])
