"""Predicted over measured output error of random mixed plans: how far the first-order estimate can be trusted.

    python -m benchmarks.prediction                                # tiny-gpt, tiny-bert, a CNN and an MLP; no network
    python -m benchmarks.prediction --model FOLDER                 # and a language model of your own
    python -m benchmarks.prediction --only mlp --plans 50 --json

A plan draws the shares of fp32, bf16 and fp16 from a flat Dirichlet distribution, then every vertex's format among its
admissible ones by these shares. Both errors are relative L2 over a set of inputs: once over the calibration inputs,
where the sensitivities were taken, and once over as many held-out ones. The bar is that at least 95% of the ratios on
the calibration inputs lie within [0.8, 1.25].

The prediction is a root mean square over how the roundings may fall; the measured error is one fall of them. On a
single short text a few numbers can dominate it (a massive activation, its norm), so that even a prediction without any
error would often be off by more than a quarter: give enough `--inputs` for the roundings to average. Language models
read passages of the built-in plays, evenly spaced; the CNN and the MLP are trained for seconds on synthetic classes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cohomcli import assets
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadOptions
from cohomcli.precision.capture import Captured, Example, capture
from cohomcli.precision.execute import Emulator
from cohomcli.precision.inputs import TextOptions, text_inputs
from cohomcli.precision.output_norm import bind
from cohomcli.precision.ranges import admissibility, ranges
from cohomcli.precision.sensitivity import SensitivityOptions, predict, sensitivity
from cohomcli.precision.spec import Admissibility, ComputationGraph, Plan

FORMATS = ("fp32", "bf16", "fp16")
BAND = (0.8, 1.25)
QUANTILES = (0.0, 0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975, 1.0)
SHORTEST = 120  # characters of a passage


@dataclass(frozen=True)
class Subject:
    """A captured model with two sets of inputs."""

    name: str
    captured: Captured
    calibration: list[Example]
    heldout: list[Example]


@dataclass(frozen=True)
class Spread:
    """How predicted / measured spreads over plans; `quantiles` as in QUANTILES. Not finite counts as outside."""

    inside: float
    quantiles: tuple[float, ...]
    n_not_finite: int


@dataclass(frozen=True)
class Outcome:
    """One model's line. Seconds are of the wall: all sensitivities, one prediction, one emulated input."""

    model: str
    n_ops: int
    n_inputs: int
    n_probes: int
    n_plans: int
    calibration: Spread
    heldout: Spread
    errors: tuple[float, float]
    seconds_scoring: float
    seconds_per_prediction: float
    seconds_per_run: float


# --- subjects ---------------------------------------------------------------------------------------------------------


def passages(split: str, count: int) -> list[str]:
    """`count` passages, evenly spaced through the plays of a split."""
    files = sorted(assets.corpus_dir(split).glob("*.txt"))
    found = [p for f in files for p in f.read_text(encoding="utf-8").split("\n\n") if len(p) >= SHORTEST]
    return [found[(2 * n + 1) * len(found) // (2 * count)] for n in range(count)]


def language_model(reference: str, n_inputs: int, length: int) -> Subject:
    """A built-in model or a model folder, on texts of `length` tokens."""
    loaded = load(resolve(reference), LoadOptions())
    model: Any = loaded.model
    model.set_attn_implementation("eager")
    both = passages("calibration", n_inputs) + passages("heldout", n_inputs)
    calls = text_inputs(model, loaded.tokenizer, both, TextOptions(length=length))
    return Subject(loaded.info.name, capture(model, calls[0]), calls[:n_inputs], calls[n_inputs:])


class Residual(nn.Module):
    """The basic block of He et al. 2016: two 3x3 convolutions with batch norm, and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.norm2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n_in, H, W) to (B, n_out, H / stride, W / stride)."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet() -> nn.Module:
    """A small residual CNN for (B, 3, 16, 16) images of ten classes."""
    stem = (nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = (Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def perceptron() -> nn.Module:
    """Four layers for vectors of 64 and ten classes."""
    return nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def classifier(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], n_inputs: int) -> Subject:
    """A network trained for 150 steps to tell ten random templates apart in noise; an input is eight samples."""
    torch.manual_seed(0)
    model, templates = build(), torch.randn(10, *shape)

    def samples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(10, (count,))
        return templates[labels] + torch.randn(count, *shape), labels

    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(150):
        x, labels = samples(64)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    model = model.eval().requires_grad_(False)
    calls = [Example((samples(8)[0],)) for _ in range(2 * n_inputs)]
    return Subject(name, capture(model, calls[0]), calls[:n_inputs], calls[n_inputs:])


# --- measuring --------------------------------------------------------------------------------------------------------


def random_plan(graph: ComputationGraph, admissible: Admissibility, rng: np.random.Generator) -> Plan:
    """Shares from Dirichlet(1, 1, 1), then every vertex independently among what is admissible."""
    shares = rng.dirichlet(np.ones(len(FORMATS)))
    chosen = []
    for vertex in graph.vertices:
        weights = shares * admissible.allowed[vertex.index]
        chosen.append("" if vertex.fixed else str(rng.choice(FORMATS, p=weights / weights.sum())))
    return Plan(tuple(chosen))


def spread(ratios: NDArray[np.float64]) -> Spread:
    """The distribution of predicted / measured."""
    finite = np.isfinite(ratios)
    inside = float(np.mean(finite & (ratios >= BAND[0]) & (ratios <= BAND[1])))
    quantiles = np.quantile(ratios[finite], QUANTILES) if finite.any() else np.full(len(QUANTILES), math.nan)
    return Spread(inside, tuple(float(q) for q in quantiles), int((~finite).sum()))


def examine(subject: Subject, n_plans: int, n_probes: int, seed: int) -> Outcome:
    """Predict and measure `n_plans` random plans."""
    captured, graph = subject.captured, subject.captured.graph
    admissible = admissibility(graph, ranges(captured, subject.calibration), FORMATS)
    started = time.perf_counter()
    found = sensitivity(captured, subject.calibration, SensitivityOptions(FORMATS, n_probes=n_probes), admissible)
    scoring = time.perf_counter() - started
    rng = np.random.default_rng(seed)
    plans = [random_plan(graph, admissible, rng) for _ in range(n_plans)]
    started = time.perf_counter()
    predicted = np.array([predict(found, plan) for plan in plans])
    predicting = time.perf_counter() - started
    started = time.perf_counter()
    errors = _errors(subject, plans)
    running = time.perf_counter() - started
    return Outcome(
        model=subject.name,
        n_ops=sum(v.kind == "op" for v in graph.vertices),
        n_inputs=len(subject.calibration),
        n_probes=n_probes,
        n_plans=n_plans,
        calibration=spread(predicted / errors[:, 0]),
        heldout=spread(predicted / errors[:, 1]),
        errors=(float(errors[:, 0].min()), float(errors[:, 0].max())),
        seconds_scoring=scoring,
        seconds_per_prediction=predicting / n_plans,
        seconds_per_run=running / (n_plans * (len(subject.calibration) + len(subject.heldout))),
    )


def _errors(subject: Subject, plans: Sequence[Plan]) -> NDArray[np.float64]:
    """(n_plans, 2): measured on the calibration and on the held-out inputs."""
    emulate = Emulator(subject.captured)
    sets = [(inputs, bind(subject.captured, inputs, "rel-l2")) for inputs in (subject.calibration, subject.heldout)]
    rows = []
    for n, plan in enumerate(plans):
        rows.append([norm.error([emulate(plan, x).outputs for x in inputs]) for inputs, norm in sets])
        if sys.stderr.isatty():
            print(f"\r{subject.name}: {n + 1} of {len(plans)} plans", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return np.array(rows)


# --- command ----------------------------------------------------------------------------------------------------------


def _row(outcome: Outcome, inputs: str, found: Spread) -> str:
    low, q05, median, q95, high = (found.quantiles[QUANTILES.index(q)] for q in (0.0, 0.05, 0.5, 0.95, 1.0))
    not_finite = f"  ({found.n_not_finite} not finite)" if found.n_not_finite else ""
    return (
        f"{outcome.model:20.20s} {outcome.n_ops:6d}  {inputs:11s} {found.inside:7.1%} "
        f"{low:7.3f} {q05:7.3f} {median:7.3f} {q95:7.3f} {high:7.3f}{not_finite}"
    )


def _report(outcome: Outcome) -> None:
    print(_row(outcome, "calibration", outcome.calibration))
    print(_row(outcome, "held out", outcome.heldout))
    print(
        f"{'':20s} {outcome.n_plans} plans on {outcome.n_inputs} + {outcome.n_inputs} inputs, errors from "
        f"{outcome.errors[0]:.1e} to {outcome.errors[1]:.1e}; {outcome.n_probes} adjoints per input; scoring "
        f"{outcome.seconds_scoring:.1f} s, a prediction {1e3 * outcome.seconds_per_prediction:.1f} ms, an emulated "
        f"input {1e3 * outcome.seconds_per_run:.0f} ms",
        flush=True,
    )


def main() -> None:
    """Print two lines per model: on the calibration inputs, where the bar is, and on the held-out ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", action="append", default=[], metavar="REF", help="a model folder or name, added")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="tiny-gpt, tiny-bert, cnn or mlp")
    parser.add_argument("--alone", action="store_true", help="only what --model names")
    parser.add_argument("--plans", type=int, default=200)
    parser.add_argument("--inputs", type=int, default=8, help="calibration inputs, and as many held-out ones")
    parser.add_argument("--length", type=int, default=32, help="tokens per text")
    parser.add_argument("--probes", type=int, default=16, help="adjoints per input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    subjects: dict[str, Callable[[], Subject]] = {
        "tiny-gpt": lambda: language_model("tiny-gpt", asked.inputs, asked.length),
        "tiny-bert": lambda: language_model("tiny-bert", asked.inputs, asked.length),
        "cnn": lambda: classifier("cnn", resnet, (3, 16, 16), asked.inputs),
        "mlp": lambda: classifier("mlp", perceptron, (64,), asked.inputs),
    }
    names = asked.only or ([] if asked.alone else list(subjects))
    if unknown := [name for name in names if name not in subjects]:
        parser.error(f"unknown name {unknown[0]!r}: one of {', '.join(subjects)}")
    wanted = [subjects[name] for name in names]
    wanted += [partial(language_model, reference, asked.inputs, asked.length) for reference in asked.model]
    if not asked.json:
        print(
            f"{'model':20s} {'ops':>6s}  {'inputs':11s} {'inside':>7s} {'min':>7s} {'5%':>7s} {'median':>7s} ", end=""
        )
        print(f"{'95%':>7s} {'max':>7s}")
    outcomes = []
    for make in wanted:
        outcomes.append(examine(make(), asked.plans, asked.probes, asked.seed))
        if not asked.json:
            _report(outcomes[-1])
    if asked.json:
        print(json.dumps({"band": BAND, "quantiles": QUANTILES, "models": [asdict(o) for o in outcomes]}, indent=2))


if __name__ == "__main__":
    main()
