"""Certified upper bounds on a box around an input, beside the largest error that sampling finds there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cohomcli.errors import UsageError
from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import Emulator, run
from cohomcli.precision.prove.package import Package, Written
from cohomcli.precision.prove.witness import with_arguments
from cohomcli.precision.spec import Plan
from cohomcli.verify.arrays import flint, float_up
from cohomcli.verify.box import MOST_SPLITS, Box, bound

PRECISION = 96
N_SAMPLES = 256


@dataclass(frozen=True)
class BoxBound:
    """`certified` bounds the largest absolute error of an output on the box, `sampled` is the largest one seen.

    `certificate` is the file that proves the bound.
    """

    plan: str
    output: str
    certified: float
    sampled: float
    certificate: Written | None

    @property
    def ratio(self) -> float:
        """Certified over sampled: how much the proof gives away, at most."""
        return self.certified / self.sampled if self.sampled else float("inf")


def certify_box(
    captured: Captured, centre: Any, radius: float, plan: Plan, package: Package, splits: int = 0
) -> BoxBound:
    """Bound the rounding error of `plan` for all inputs within `radius` of the call `centre`, entry by entry.

    Raises:
        UsageError: an input that is not real, several outputs, or more `splits` than a checker follows.
        Unsupported: the net is not one of linear layers, sums and elementwise functions.
    """
    arguments = captured.program.arguments
    if not all(a.dtype.is_floating_point for a in arguments) or len(captured.program.outputs) != 1:
        raise UsageError("box bounds are for nets with real inputs and one output")
    if not 0 <= splits <= MOST_SPLITS:
        raise UsageError(f"{splits} splits: a checker follows at most {MOST_SPLITS}")
    ((output, slot),) = captured.program.outputs
    middle = {s: v.double() for s, v in captured.bind(centre).items()}
    box = Box(
        {s: v.numpy() for s, v in middle.items()}, {s: np.full(tuple(v.shape), radius) for s, v in middle.items()}
    )
    formats = formats_by_slot(captured, plan)
    held = {h.slot: h.tensor.detach().numpy() for h in captured.program.held}
    with flint().ctx.workprec(PRECISION):
        certified = max(float_up(value) for value in bound(package.graph, held, formats, box, slot, splits))
    names = {a.slot: a.name for a in arguments}
    distinct = set(formats.values())
    called = f"uniform {next(iter(distinct))}" if len(distinct) == 1 else "the plan"
    claim = {
        "plan": called,
        "formats": {str(s): f for s, f in formats.items()},
        "output": output,
        "bound": certified,
        "splits": splits,
    }
    tensors = {f"centre:{names[s]}": v for s, v in box.centre.items()}
    tensors |= {f"radius:{names[s]}": v for s, v in box.radius.items()}
    written = package.write("box", f"box-{called.replace(' ', '-')}", claim, tensors, PRECISION)
    sampled = _sampled(captured, centre, middle, radius, plan)
    return BoxBound(called, output, certified, sampled, written)


def formats_by_slot(captured: Captured, plan: Plan) -> dict[int, str]:
    """The plan's formats by slot of the plain graph; tied weights have every slot they appear in."""
    chosen = {captured.layout.slot[v]: fmt for v, fmt in enumerate(plan.formats) if fmt}
    for held in captured.program.held:
        fmt = plan.formats[captured.layout.root[held.slot]]
        if fmt:
            chosen[held.slot] = fmt
    return chosen


def _sampled(captured: Captured, centre: Any, middle: Mapping[int, torch.Tensor], radius: float, plan: Plan) -> float:
    """The largest absolute error over seeded uniform inputs of the box, against float64."""
    generator, emulate = torch.Generator().manual_seed(0), Emulator(captured)
    worst = 0.0
    for _ in range(N_SAMPLES):
        moved = {
            s: (v + radius * (2 * torch.rand(v.shape, generator=generator, dtype=torch.float64) - 1)).float()
            for s, v in middle.items()
        }
        x = with_arguments(captured, centre, moved)
        (reference,), (y,) = run(captured, x, torch.float64), emulate(plan, x).outputs
        worst = max(worst, float((y.double() - reference).abs().max()))
    return worst
