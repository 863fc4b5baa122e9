"""How often the plan's held-out error keeps epsilon, over models, norms and tolerances that fp32 itself keeps.

    python -m benchmarks.closed_loop                     # built-in models, ten small architectures, a CNN and an MLP
    python -m benchmarks.closed_loop --model path/to/model --norm kl --json

Tolerances are 3, 30, 300, ... times the held-out error of fp32, up to that of the cheapest plan. Plans are made as the
command makes them: four calibration inputs, 12 to 28 further ones whose errors say how much an unseen input may differ,
and four held-out ones that only measure; texts are drawn as the command draws them, `--seed` draws others. A row says
how many tolerances were kept, the most rounds it took, how often fp32 everywhere was the last resort, the largest share
of epsilon that a held-out error used, and the median price of the reserve: bytes of the plan over bytes of the first
plan that the solver predicts to need all of epsilon.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from statistics import median

from benchmarks.prediction import perceptron, resnet, trained
from benchmarks.subjects import SURVEYED, Size, Subject, configurations, random_subject, trained_subject
from cohomcli.precision.analysis import afforded, measure, prepare
from cohomcli.precision.assignment import solve
from cohomcli.precision.capture import Captured, capture
from cohomcli.precision.costs import bytes_of
from cohomcli.precision.execute import uniform
from cohomcli.precision.loop import GAP, Looped, Setting, closed_loop, problem_for
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.output_norm import bind
from cohomcli.precision.problem import plan_of
from cohomcli.precision.spec import ErrorNorm
from cohomcli.precision.summary import Inputs

BUILT_IN = ("tiny-gpt", "tiny-bert")
CLASSIFIERS = {"cnn": (resnet, (3, 16, 16)), "mlp": (perceptron, (64,))}
NORMS: tuple[ErrorNorm, ...] = ("rel-l2", "max-abs", "kl")
QUICK = PrecisionOptions(time_limit=5.0)
LEAST = {"rel-l2": 0.0, "max-abs": 0.0, "kl": 1e-12}  # nats: below it no tolerance makes sense


@dataclass(frozen=True)
class Row:
    """One model in one norm, over all tolerances; `price` is the median share of bytes that the reserve costs."""

    model: str
    norm: ErrorNorm
    tried: int
    kept: int
    rounds: int
    last_resorts: int
    largest_share: float
    price: float
    seconds: float


def main() -> None:
    """Print one line per model and norm, then the total."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", action="append", default=[], help="only these: a name of the default ones, or any")
    options.add_argument("--norm", action="append", default=[], choices=NORMS, help="only these norms")
    options.add_argument("--seed", type=int, default=0, help="of the inputs, and of the small architectures' weights")
    options.add_argument("--step", type=float, default=10.0, help="from one tolerance to the next")
    options.add_argument("--json", action="store_true", help="one JSON document on stdout")
    chosen = options.parse_args()
    rows = []
    for subject in _subjects(chosen.model, chosen.seed):
        with contextlib.redirect_stderr(io.StringIO()):
            captured = capture(subject.model, subject.calibration[0], subject.outputs)
        for norm in chosen.norm or NORMS:
            rows.append(_row(subject, captured, norm, chosen.step))
            print(_line(rows[-1]), file=sys.stderr if chosen.json else sys.stdout, flush=True)
    tried, kept = sum(r.tried for r in rows), sum(r.kept for r in rows)
    if chosen.json:
        print(json.dumps({"rows": [asdict(r) for r in rows], "tried": tried, "kept": kept}, indent=2))
    else:
        rounds, resorts = max(r.rounds for r in rows), sum(r.last_resorts for r in rows)
        print(f"met {kept} of {tried} (model, epsilon) pairs in at most {rounds} rounds, {resorts} by fp32 everywhere")


def _subjects(references: list[str], seed: int) -> Iterator[Subject]:
    small = configurations(Size())
    for name in references or (*BUILT_IN, *small, *CLASSIFIERS):
        if name in CLASSIFIERS:
            build, shape = CLASSIFIERS[name]
            model, calls = trained(build, shape, 8 + SURVEYED)
            yield Subject(name, model, calls[:4], calls[4:8], surveyed=calls[8:])
        else:
            yield random_subject(name, seed=seed) if name in small else trained_subject(name, 32, seed)


def _row(subject: Subject, captured: Captured, norm: ErrorNorm, step: float) -> Row:
    started = time.process_time()
    inputs = afforded(captured, Inputs(subject.calibration, subject.heldout, surveyed=subject.surveyed, thrifty=True))
    options = replace(QUICK, norm=norm)
    setting, _ = prepare(captured, inputs, options)
    heldout = bind(captured, inputs.heldout, norm)
    floor = measure(heldout, setting.emulate, uniform(captured, "fp32"), inputs.heldout).error
    epsilon = 3.0 * max(floor, LEAST[norm])
    loops: list[tuple[Looped, float, float]] = []
    while True:
        asked = replace(options, epsilon=epsilon)
        looped = closed_loop(setting, asked, lambda _: None)
        error = measure(heldout, setting.emulate, looped.plan, inputs.heldout).error
        loops.append((looped, error / epsilon, _price(setting, asked, looped)))
        if looped.good and looped.rounds[looped.chosen].bytes <= _least_bytes(setting, options):
            break  # a larger tolerance gives no cheaper plan
        epsilon *= step
    return Row(
        model=subject.name,
        norm=norm,
        tried=len(loops),
        kept=sum(share <= 1.0 for _, share, _ in loops),
        rounds=max(len(looped.rounds) for looped, *_ in loops),
        last_resorts=sum(not looped.solved for looped, *_ in loops),
        largest_share=max(share for _, share, _ in loops),
        price=median(price for *_, price in loops),
        seconds=time.process_time() - started,
    )


def _price(setting: Setting, options: PrecisionOptions, looped: Looped) -> float:
    """How many more bytes the plan takes than one that is predicted to use all of epsilon, as a share."""
    solution = solve(problem_for(setting, options, options.epsilon), options.time_limit, GAP)
    if solution.choice is None:
        return 0.0
    whole = bytes_of(setting.graph, plan_of(setting.graph, options.formats, solution)).total
    return looped.rounds[looped.chosen].bytes / whole - 1.0


def _least_bytes(setting: Setting, options: PrecisionOptions) -> float:
    """Bytes of the cheapest plan of all, within a percent."""
    solution = solve(problem_for(setting, options, 1e30), options.time_limit, GAP)
    assert solution.objective is not None
    return 1.01 * solution.objective


def _line(row: Row) -> str:
    return (
        f"{row.model:24} {row.norm:8} kept {row.kept}/{row.tried}, at most {row.rounds} rounds, "
        f"{row.last_resorts} last resorts, largest error / epsilon {row.largest_share:.2f}, "
        f"price {row.price:.1%} ({row.seconds:.0f} CPU s)"
    )


if __name__ == "__main__":
    main()
