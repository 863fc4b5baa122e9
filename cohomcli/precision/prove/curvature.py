"""The search for a segment where the corrected curvature bound says something: through an input, along the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cohomcli.errors import AnalysisIncomplete
from cohomcli.precision.capture import Captured
from cohomcli.precision.prove.lowering import as_array
from cohomcli.precision.prove.package import Package
from cohomcli.precision.prove.witness import differentiable
from cohomcli.precision.result import Refutation
from cohomcli.verify.arrays import Undecided
from cohomcli.verify.document import Rejected
from cohomcli.verify.kinds.curvature import bits_of, derivatives_below

if TYPE_CHECKING:
    from cohomcli.precision.prove.refute import RefuteOptions

PIECES = 8
PRECISION = 128
HALVINGS = 12  # of the segment's length, from the input's own size down
MOST_WORK = 1 << 17  # steps times entries of the weights: series are slow


def curvature(captured: Captured, x: Any, options: RefuteOptions, package: Package) -> Refutation:
    """The bits that any algorithm needs of its place on a segment through `x`, for the tolerance as absolute error."""

    def missing(why: str) -> Refutation:
        text = f"no segment found on which the curvature bound says something: {why}"
        return Refutation("any", "curvature", text, options.epsilon, "max-abs", None)

    program = captured.program
    if options.norm != "max-abs":
        return missing("it is about absolute errors (norm max-abs)")
    if not all(a.dtype.is_floating_point for a in program.arguments):
        return missing("the inputs are discrete")
    if len(program.instructions) * (1 + sum(h.tensor.numel() for h in program.held)) > MOST_WORK:
        return missing("the model is too large for interval derivatives")
    bound = {slot: value.double() for slot, value in captured.bind(x).items()}
    leaves = {slot: value.clone().requires_grad_() for slot, value in bound.items()}
    name, y = program.outputs[0][0], differentiable(captured, leaves)[0]
    entry = int(y.detach().abs().argmax())
    gradients = torch.autograd.grad(y.flatten()[entry], list(leaves.values()), allow_unused=True)
    slope = {s: torch.zeros_like(v) if g is None else g for (s, v), g in zip(bound.items(), gradients, strict=True)}
    norm = sum(float(g.square().sum()) for g in slope.values()) ** 0.5
    if not 0 < norm < float("inf"):
        return missing("the gradient vanishes")
    direction = {s: g / norm for s, g in slope.items()}
    length = max(float(v.abs().max()) for v in bound.values()) or 1.0
    for _ in range(HALVINGS):
        start = {s: v - length / 2 * direction[s] for s, v in bound.items()}
        found = _tried(captured, (start, direction), (name, entry, length), options, package)
        if found is not None:
            return found
        length /= 2
    return missing("the second derivative has zeros, kinks, or is too small for epsilon")


def _tried(
    captured: Captured,
    segment: tuple[Any, Any],
    place: tuple[str, int, float],
    options: RefuteOptions,
    package: Package,
) -> Refutation | None:
    start, direction = ({s: as_array(v) for s, v in part.items()} for part in segment)
    held = {h.slot: as_array(h.tensor) for h in captured.program.held}
    name, entry, length = place
    try:
        kappa, slope = derivatives_below(package.graph, held, start, direction, (*place, PIECES), PRECISION)
        bits, slope_bits = bits_of(kappa, slope, length, options.epsilon, PIECES)
    except (Rejected, Undecided, AnalysisIncomplete):
        return None
    claim = {
        "output": name, "entry": entry, "length": length, "pieces": PIECES, "kappa": kappa, "slope": slope,
        "epsilon": options.epsilon, "bits": bits, "slope_bits": slope_bits,
    }  # fmt: skip
    names = package.graph.arguments
    tensors = {f"start:{names[s]}": v for s, v in start.items()} | {
        f"direction:{names[s]}": v for s, v in direction.items()
    }
    written = package.write("curvature", "curvature", claim, tensors, PRECISION)
    if written is None:
        return None
    return Refutation("any", "curvature", written.statement, options.epsilon, "max-abs", None, written.path.name)
