"""A model with one massive activation: autocast in fp16 gives NaN; our plans give none, with most ops in 16 bits.

    python -m benchmarks.massive

The model is a pico llama whose second block adds about 1e6 to one channel of the residual stream; trained decoders add
hundreds to thousands. Plans go through the whole analysis, on 4 + 12 calibration calls and 4 held-out ones for the
error. Finite outputs are counted on 40 more calls, run in the model with explicit casts.
"""

from __future__ import annotations

import torch

from benchmarks.subjects import Subject
from cohomcli.precision.analysis import Analysis, analyse
from cohomcli.precision.capture import Example
from cohomcli.precision.explicit import apply
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.summary import Inputs
from tests.massive import call, massive_llama

N_UNSEEN = 40
FORMATS = (("fp32", "fp16"), ("fp32", "bf16", "fp16"))
TOLERANCES = (1e-2, 5e-3, 1e-3, 3e-4)


def main() -> None:
    """Print how often autocast is not finite, then a line per set of formats and tolerance."""
    calls = [Example((), call(seed)) for seed in range(20 + N_UNSEEN)]
    subject = Subject("massive", massive_llama(), calls[:4], calls[16:20], surveyed=calls[4:16])
    unseen = calls[20:]
    for dtype in (torch.float16, torch.bfloat16):
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
            outputs = [subject.model(**(x.kwargs or {})).logits for x in unseen]
        print(f"autocast {dtype}: NaN on {sum(bool(y.isnan().any()) for y in outputs)} of {N_UNSEEN} calls")
    for formats in FORMATS:
        for epsilon in TOLERANCES:
            wanted = PrecisionOptions(
                epsilon=epsilon, formats=formats, baselines=False, n_pareto=0, n_curvature=0, time_limit=10.0
            )
            inputs = Inputs(subject.calibration, subject.heldout, surveyed=subject.surveyed)
            print(_line(subject, analyse(subject.model, inputs, wanted, ("logits",)), unseen), flush=True)


def _line(subject: Subject, found: Analysis, unseen: list[Example]) -> str:
    applied = apply(subject.model, found.plan, found.captured)
    finite = sum(bool(applied(**(x.kwargs or {})).logits.isfinite().all()) for x in unseen)
    ops = [row.format for row in found.result.plan if row.kind == "op"]
    low = sum(fmt in ("bf16", "fp16") for fmt in ops) / len(ops)
    error, met = found.result.measured_error, "met" if found.result.met else "NOT MET"
    return (
        f"{'+'.join(found.result.formats):15} eps {found.result.epsilon:<7g} {met}, "
        f"held-out error {'-' if error is None else format(error, '.2e')}, {low:.0%} of {len(ops)} ops in 16 bits, "
        f"finite on {finite} of {len(unseen)} unseen calls"
    )


if __name__ == "__main__":
    main()
