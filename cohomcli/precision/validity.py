"""Whether first order can be trusted: the antithetic test, in float64.

With delta the rounding of every vertex under a uniform format, the response f(+delta) - f(0) splits into an odd part
(f(+delta) - f(-delta)) / 2, which first order describes up to third-order terms, and an even part
(f(+delta) + f(-delta)) / 2 - f(0), the curvature. Their ratio says how much of the output error no adjoint can predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cohomcli.precision.adjoint import record
from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import masked_entries, run, store_value, weight_axes
from cohomcli.precision.formats import get_format
from cohomcli.precision.output_norm import OutputNorm, Outputs, bind
from cohomcli.precision.spec import Admissibility


def curvature_ratios(
    captured: Captured, inputs: Sequence[Any], formats: Sequence[str], admissible: Admissibility | None = None
) -> dict[str, float]:
    """||even|| / ||odd|| in relative L2 over `inputs`, per format; vertices where it is not admissible stay exact.

    0 for a format that rounds nothing; inf when a perturbed run is not finite. Two float64 runs per input and format.
    """
    norm = bind(captured, inputs, "rel-l2")
    values = [dict(record(captured, x).values) for x in inputs]
    return {fmt: _ratio(captured, inputs, fmt, admissible, norm, values) for fmt in formats}


def _ratio(
    captured: Captured,
    inputs: Sequence[Any],
    fmt: str,
    admissible: Admissibility | None,
    norm: OutputNorm,
    values: Sequence[dict[int, torch.Tensor]],
) -> float:
    odd, even = [], []
    for example, recorded, reference in zip(inputs, values, norm.references, strict=True):
        plus = _perturbed(captured, example, fmt, admissible, recorded, 1.0)
        minus = _perturbed(captured, example, fmt, admissible, recorded, -1.0)
        # As outputs of their own, so that the norm's distance from the reference is the size of each part.
        odd.append(tuple(r + (p - m) / 2 for p, m, r in zip(plus, minus, reference, strict=True)))
        even.append(tuple((p + m) / 2 for p, m in zip(plus, minus, strict=True)))
    size_odd, size_even = norm.error(odd), norm.error(even)
    if size_odd == 0.0:
        return 0.0
    ratio = size_even / size_odd
    return ratio if ratio == ratio else float("inf")


def _perturbed(
    captured: Captured,
    example: Any,
    fmt: str,
    admissible: Admissibility | None,
    recorded: dict[int, torch.Tensor],
    sign: float,
) -> Outputs:
    """The float64 outputs when `sign` times its own rounding is added to every vertex."""
    vertices, axes = captured.graph.vertices, weight_axes(captured)

    def store(index: int, value: torch.Tensor) -> torch.Tensor:
        vertex = vertices[index]
        allowed = admissible is None or bool(admissible.allowed[index, admissible.formats.index(fmt)])
        no_channels = get_format(fmt).per_channel and (vertex.kind != "weight" or value.dim() < 2)
        if vertex.fixed or not allowed or no_channels:
            return value
        at = recorded[index]
        delta = store_value(vertex, at, fmt, axes.get(index, 0)) - at
        hidden = masked_entries(vertex, at) | ~torch.isfinite(delta)
        return value + sign * delta.masked_fill_(hidden, 0.0).double()

    return run(captured, example, torch.float64, store)
