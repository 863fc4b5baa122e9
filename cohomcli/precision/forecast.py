"""How much memory a precision analysis of a language model takes, from the sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT, DOUBLE = 4, 8
MOST_SURVEYED = 28  # further calibration inputs that a survey left open reads at most
REFERENCE_BYTES = 1 << 30  # of the float64 outputs that plans are compared with on further calibration inputs
_ROUNDED = 2  # the rounding of a value and its square, in each format
_COTANGENTS = 3  # those of the logits, of what they come from, and the sum of both


@dataclass(frozen=True)
class Sizes:
    """`block_bytes` is what one block keeps of one token in float32; calls have `tokens` tokens."""

    n_parameters: int
    n_blocks: int
    block_bytes: int
    vocab_size: int
    tokens: int
    n_calls: int
    n_formats: int
    n_probes: int


def forecast_bytes(sizes: Sizes) -> int:
    """The peak in bytes beside the loaded code, the model in it.

    All values of one call are recorded in float32 and, for the second order, in float64; the weights are held once,
    and a second time as a plan rounds them. The widest value is a call's logits: their cotangents in all probes and
    their roundings in all formats are alive together, and every call's float64 logits are kept to compare with.
    """
    weights = 2 * FLOAT * sizes.n_parameters
    recorded = sizes.n_blocks * sizes.block_bytes * sizes.tokens * (FLOAT + DOUBLE) // FLOAT
    logits = FLOAT * sizes.tokens * sizes.vocab_size
    sweep = logits * (_COTANGENTS * sizes.n_probes + _ROUNDED * sizes.n_formats)
    references = min(2 * logits * sizes.n_calls, REFERENCE_BYTES)
    return weights + recorded + sweep + references
