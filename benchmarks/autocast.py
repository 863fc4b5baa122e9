"""Our plans against PyTorch autocast with the same two formats, measured: fewer bytes, or less error.

    python -m benchmarks.autocast                          # ten Hugging Face architectures, fp16+fp32 and bf16+fp32
    python -m benchmarks.autocast --only gpt2,t5 --json
    python -m benchmarks.autocast --model tiny-gpt --model path/to/model      # trained models on built-in texts

The ten are small: width 256, 4 layers (2+2 with an encoder), 4 heads, a feed-forward width of 1,024, 1,024 ids, and 32
tokens (ViT: 64 patches). What decides between weights and activations is tokens per width, here 1/8 as for GPT-2 small
with 96 tokens or a model of width 2,048 with 256; `--tokens` and `--width` change it. Weights are random but uneven, as
training leaves them: standard deviation gain / sqrt(fan-in) with a log-normal gain per tensor (sigma 0.5), norms around
1, embeddings 0.25.

Autocast really runs: the module under torch.autocast("cpu"), its bytes by the CPU op lists. Ours is emulated with every
store rounded, and `apply` must give the same bits. Both are measured against float64 outputs (relative L2). Plans are
chosen on calibration inputs alone (`--margin` below autocast's error there); errors are those of held-out inputs.

Bytes are weights, results written and operands read, and casts. Ours always pays for its casts. Autocast is counted in
three ways:
    free      float32 weights, activations in autocast's dtypes; none of its casts costs anything. This decides.
    charged   with all its casts of weights and activations read and written, as unfused kernels do.
    converted without float32 masters: weights that it reads in 16 bits are counted as if stored so, its casts of
              activations are charged. That is a model converted by hand to autocast's choices, so this compares the
              choices of formats alone.
(a) bytes saved by the cheapest plan whose error is no larger; (b) error of autocast over that of the most accurate plan
that moves no more bytes. Success is (a) >= 20% and (b) >= 2.5 with held-out errors, in the `free` count.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from benchmarks.subjects import Size, Subject, configurations, random_subject, trained_subject
from cohomcli.precision.assignment import solve
from cohomcli.precision.autocast import autocast_flow
from cohomcli.precision.baselines import named_outputs
from cohomcli.precision.capture import Captured, Example, capture
from cohomcli.precision.costs import autocast_bytes, bytes_of
from cohomcli.precision.execute import Emulator
from cohomcli.precision.explicit import apply
from cohomcli.precision.output_norm import OutputNorm, bind
from cohomcli.precision.problem import build_problem, plan_of
from cohomcli.precision.ranges import admissibility, ranges
from cohomcli.precision.sensitivity import SensitivityOptions, sensitivity
from cohomcli.precision.spec import ComputationGraph, Plan, Problem
from cohomcli.precision.traffic import one_per_storage, stored_bytes

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
COUNTS = ("free", "charged", "converted")
SAVED, FACTOR = 0.20, 2.5
N_MEASURED = 8  # calibration inputs that plans are compared on


# --- autocast ---------------------------------------------------------------------------------------------------------


def autocast_error(subject: Subject, captured: Captured, calls: Sequence[Example], norm: OutputNorm, fmt: str) -> float:
    """The error of the module itself under torch.autocast on the CPU."""
    outputs = []
    with torch.no_grad(), torch.autocast("cpu", dtype=DTYPES[fmt]):
        for call in calls:
            outputs.append(named_outputs(captured, subject.model(*call.args, **(call.kwargs or {}))))
    return norm.error(outputs)


def autocast_counts(graph: ComputationGraph, fmt: str) -> dict[str, int]:
    """Autocast's bytes in the three ways of counting."""
    counted, flow = autocast_bytes(graph, fmt, "cpu"), autocast_flow(graph, fmt, "cpu")
    asked: dict[int, set[str]] = {}
    for v in graph.vertices:
        for u, wanted in zip(v.operands, flow.asked[v.index], strict=True):
            asked.setdefault(u, set()).add(wanted)
    weights = [tied[0] for tied in one_per_storage(graph).values()]
    read = {w: (stored_bytes(graph, w, flow.stored[w]), stored_bytes(graph, w, fmt)) for w in weights}
    masters = sum(wide - low for w, (wide, low) in read.items() if asked.get(w) == {fmt})
    copies = sum(wide + low for w, (wide, low) in read.items() if fmt in asked.get(w, ()))
    return {
        "free": counted.total - counted.casts,
        "charged": counted.total,
        "converted": counted.total - masters - copies,
    }


# --- ours -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A plan with its bytes, casts included, and its measured calibration error."""

    plan: Plan
    bytes: int
    n_casts: int
    error: float


class Planner:
    """Plans of two formats for one captured model, by tolerance; each is solved and measured once."""

    def __init__(self, captured: Captured, subject: Subject, formats: tuple[str, str], time_limit: float) -> None:
        self.captured, self.formats, self.time_limit = captured, formats, time_limit
        self.calls = [*subject.calibration, *subject.surveyed][:N_MEASURED]
        seen = ranges(captured, [*subject.calibration, *subject.surveyed])
        allowed = admissibility(captured.graph, seen, formats)
        found = sensitivity(captured, subject.calibration, SensitivityOptions(formats), allowed)
        self.problem: Callable[[float], Problem] = lambda eps: build_problem(captured.graph, found, allowed, eps)
        self.norm, self.emulate = bind(captured, self.calls, "rel-l2"), Emulator(captured)
        self.seen: dict[float, Point | None] = {}

    def at(self, eps: float) -> Point | None:
        """The cheapest plan predicted to meet `eps`, None where there is none."""
        if eps not in self.seen:
            solution = solve(self.problem(eps), self.time_limit, rel_gap=2e-3)
            self.seen[eps] = None
            if solution.choice is not None:
                plan = plan_of(self.captured.graph, self.formats, solution)
                counted = bytes_of(self.captured.graph, plan)
                error = self.norm.error([self.emulate(plan, x).outputs for x in self.calls])
                self.seen[eps] = Point(plan, counted.total, counted.n_casts, error)
        return self.seen[eps]

    def bisect(self, good: Callable[[Point], bool], best: Callable[[Point], float], start: float) -> Point | None:
        """The best plan seen while a tolerance is bisected, in its logarithm, towards where `good` changes.

        `good` holds on one side: of small tolerances (errors), or of large ones (bytes).
        """
        low, high = math.log(start) - 5.0, math.log(start) + 3.0
        side = self._good(math.exp(low), good)
        for _ in range(9):
            middle = (low + high) / 2
            if self._good(math.exp(middle), good) == side:
                low = middle
            else:
                high = middle
        points = [p for p in self.seen.values() if p is not None and good(p)]
        return min(points, key=best, default=None)

    def _good(self, eps: float, good: Callable[[Point], bool]) -> bool:
        point = self.at(eps)
        return point is not None and good(point)


# --- comparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One model and one 16-bit format. Per way of counting: autocast's bytes, `saved` (a), `factor` (b), None if none.

    `autocast`, `cheap_error` and `accurate_error` are held-out errors; `equal` says that `apply` gave the same bits.
    """

    model: str
    format: str
    vertices: int
    autocast: float
    autocast_casts: int
    autocast_bytes: dict[str, int]
    fp32_bytes: int
    cheap_bytes: int | None
    cheap_error: float | None
    cheap_casts: int | None
    saved: dict[str, float | None]
    accurate_bytes: dict[str, int | None]
    accurate_error: dict[str, float | None]
    factor: dict[str, float | None]
    equal: bool
    seconds: float

    @property
    def passed(self) -> tuple[bool, bool]:
        """Whether (a) and (b) hold on held-out inputs, in the `free` count."""
        saved, factor = self.saved["free"], self.factor["free"]
        no_worse = self.cheap_error is not None and self.cheap_error <= self.autocast
        return saved is not None and no_worse and saved >= SAVED, factor is not None and factor >= FACTOR


def compare(subject: Subject, captured: Captured, fmt: str, margin: float, time_limit: float) -> Row:
    """Both searches for one model and one 16-bit format beside fp32."""
    started = time.process_time()
    planner = Planner(captured, subject, ("fp32", fmt), time_limit)
    heldout = bind(captured, subject.heldout, "rel-l2")
    theirs = autocast_error(subject, captured, subject.heldout, heldout, fmt)
    reference = autocast_error(subject, captured, planner.calls, planner.norm, fmt)
    counts = autocast_counts(captured.graph, fmt)
    cheap = planner.bisect(lambda p: p.error <= margin * reference, lambda p: p.bytes, reference)
    accurate = {
        count: planner.bisect(lambda p, limit=limit: p.bytes <= limit, lambda p: p.error, reference)  # type: ignore[misc]
        for count, limit in counts.items()
    }

    def measured(point: Point | None) -> float | None:
        if point is None:
            return None
        return heldout.error([planner.emulate(point.plan, x).outputs for x in subject.heldout])

    errors = {count: measured(point) for count, point in accurate.items()}
    fp32 = bytes_of(captured.graph, Plan(tuple("" if v.fixed else "fp32" for v in captured.graph.vertices)))
    return Row(
        model=subject.name,
        format=fmt,
        vertices=len(captured.graph.vertices),
        autocast=theirs,
        autocast_casts=autocast_bytes(captured.graph, fmt, "cpu").n_casts,
        autocast_bytes=counts,
        fp32_bytes=fp32.total,
        cheap_bytes=None if cheap is None else cheap.bytes,
        cheap_error=measured(cheap),
        cheap_casts=None if cheap is None else cheap.n_casts,
        saved={count: None if cheap is None else 1 - cheap.bytes / counts[count] for count in COUNTS},
        accurate_bytes={count: None if p is None else p.bytes for count, p in accurate.items()},
        accurate_error=errors,
        factor={count: None if not error else theirs / error for count, error in errors.items()},
        equal=all(_same_bits(subject, planner, p) for p in (cheap, accurate["free"]) if p is not None),
        seconds=time.process_time() - started,
    )


def _same_bits(subject: Subject, planner: Planner, point: Point) -> bool:
    """Whether the explicit-cast model gives the emulator's outputs, bit for bit, on the first held-out input."""
    call = subject.heldout[0]
    outputs = apply(subject.model, point.plan, planner.captured)(*call.args, **(call.kwargs or {})).values()
    return all(torch.equal(a, b) for a, b in zip(outputs, planner.emulate(point.plan, call).outputs, strict=True))


def subjects(arguments: argparse.Namespace) -> Iterator[Subject]:
    """What was asked for, one at a time."""
    if arguments.model:
        yield from (trained_subject(reference, arguments.tokens) for reference in arguments.model)
        return
    size = Size(arguments.width, arguments.tokens)
    wanted = arguments.only.split(",") if arguments.only else list(configurations(size))
    yield from (random_subject(name, size, arguments.seed) for name in wanted)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}x"


HEADER = (
    "model        format vertices | autocast: error     MB casts | (a) error     MB casts  saved free charged converted"
    " | (b) MB  factor free charged converted | same bits pass"
)


def line(row: Row) -> str:
    """One line of the table."""
    error = "-" if row.cheap_error is None else f"{row.cheap_error:.2e}"
    accurate, cheap = row.accurate_bytes["free"] or math.nan, row.cheap_bytes or math.nan
    saved, factor = [_percent(row.saved[c]) for c in COUNTS], [_times(row.factor[c]) for c in COUNTS]
    theirs = f"{row.autocast:15.2e} {row.autocast_bytes['free'] / 1e6:6.1f} {row.autocast_casts:5d}"
    ours = f"{error:>9s} {cheap / 1e6:6.1f} {row.cheap_casts or 0:5d} {saved[0]:>11s} {saved[1]:>7s} {saved[2]:>9s}"
    better = f"{accurate / 1e6:6.1f} {factor[0]:>12s} {factor[1]:>7s} {factor[2]:>9s}"
    passed = "".join(letter if ok else "-" for letter, ok in zip("ab", row.passed, strict=True))
    name = f"{row.model[:12]:12s} {row.format:6s} {row.vertices:8d}"
    return f"{name} | {theirs} | {ours} | {better} | {'yes' if row.equal else 'NO':>9s} {passed:>4s}"


def main() -> None:
    """Print one line per model and format, then how many pass."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="comma-separated architectures of the ten")
    parser.add_argument("--model", action="append", help="a trained model instead: built-in name or folder")
    parser.add_argument("--width", type=int, default=Size.width)
    parser.add_argument("--tokens", type=int, default=Size.tokens)
    parser.add_argument("--formats", default="fp16,bf16")
    parser.add_argument("--margin", type=float, default=0.9, help="(a) aims at this share of autocast's error")
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds per solve, a last resort")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    talk = sys.stderr if arguments.json else sys.stdout
    print(HEADER, file=talk)
    rows = []
    for subject in subjects(arguments):
        with contextlib.redirect_stderr(io.StringIO()):
            captured = capture(subject.model, subject.calibration[0], subject.outputs)
        for fmt in arguments.formats.split(","):
            rows.append(compare(subject, captured, fmt, arguments.margin, arguments.time_limit))
            print(line(rows[-1]), file=talk, flush=True)
    for fmt in arguments.formats.split(","):
        passed = [row.passed for row in rows if row.format == fmt]
        a, b = (sum(column) for column in zip(*passed, strict=True))
        both = sum(all(p) for p in passed)
        print(f"{fmt}: (a) {a} of {len(passed)}, (b) {b} of {len(passed)}, both {both}", file=talk)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False))


if __name__ == "__main__":
    main()
