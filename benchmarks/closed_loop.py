"""How often the plan's held-out error keeps epsilon, over models, norms and tolerances that fp32 itself keeps.

    python -m benchmarks.closed_loop                                  # built-in models and ten small architectures
    python -m benchmarks.closed_loop --model path/to/model --norm kl --json

Tolerances are 3, 30, 300, ... times the held-out error of fp32, up to that of the narrowest admissible plan; four
calibration and four held-out inputs each. A row says how many tolerances were kept, the most rounds it took, and the
largest share of epsilon that a held-out error used.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from benchmarks.subjects import Size, Subject, configurations, random_subject, trained_subject
from cohomcli.precision.analysis import analyse
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.spec import ErrorNorm
from cohomcli.precision.summary import Inputs

BUILT_IN = ("tiny-gpt", "tiny-bert")
NORMS: tuple[ErrorNorm, ...] = ("rel-l2", "max-abs", "kl")
QUICK = PrecisionOptions(n_pareto=0, n_curvature=0, baselines=False, time_limit=10.0)


@dataclass(frozen=True)
class Row:
    """One model in one norm: tolerances tried and kept, the most rounds, the largest held-out error over epsilon."""

    model: str
    norm: ErrorNorm
    tried: int
    kept: int
    rounds: int
    largest_share: float
    seconds: float


def main() -> None:
    """Print one line per model and norm, then the total."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", action="append", default=[], help="only these models, named as for cohom")
    options.add_argument("--norm", action="append", default=[], choices=NORMS, help="only these norms")
    options.add_argument("--json", action="store_true", help="one JSON document on stdout")
    chosen = options.parse_args()
    rows = []
    for subject in _subjects(chosen.model):
        for norm in chosen.norm or NORMS:
            rows.append(_row(subject, norm))
            print(_line(rows[-1]), file=sys.stderr if chosen.json else sys.stdout, flush=True)
    tried, kept = sum(r.tried for r in rows), sum(r.kept for r in rows)
    if chosen.json:
        print(json.dumps({"rows": [asdict(r) for r in rows], "tried": tried, "kept": kept}, indent=2))
    else:
        print(f"kept {kept} of {tried} tolerances, in at most {max(r.rounds for r in rows)} rounds")


def _subjects(references: list[str]) -> Iterator[Subject]:
    for reference in references or BUILT_IN:
        yield trained_subject(reference, 32)
    if not references:
        for name in configurations(Size()):
            yield random_subject(name)


def _row(subject: Subject, norm: ErrorNorm) -> Row:
    started = time.monotonic()
    inputs = Inputs(subject.calibration, subject.heldout)

    def run(epsilon: float) -> tuple[float, float, int, bool]:
        result = analyse(subject.model, inputs, replace(QUICK, epsilon=epsilon, norm=norm), subject.outputs).result
        assert result.fp32_error is not None
        error = float("inf") if result.measured_error is None else result.measured_error
        return result.fp32_error, error, len(result.rounds), result.met

    floor, ceiling, *_ = run(1e30)
    # Differences of the divergence below 1e-12 are rounding of the reference itself.
    epsilon, tried, kept, rounds, share = 3.0 * max(floor, 1e-12), 0, 0, 0, 0.0
    while epsilon < ceiling:
        _, error, used, met = run(epsilon)
        tried, kept, rounds, share = tried + 1, kept + met, max(rounds, used), max(share, error / epsilon)
        epsilon *= 10.0
    return Row(subject.name, norm, tried, kept, rounds, share, time.monotonic() - started)


def _line(row: Row) -> str:
    return (
        f"{row.model:24} {row.norm:8} kept {row.kept}/{row.tried}, at most {row.rounds} rounds, "
        f"largest held-out error / epsilon {row.largest_share:.2f} ({row.seconds:.0f} s)"
    )


if __name__ == "__main__":
    main()
