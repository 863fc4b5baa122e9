"""Predicted over measured output error of random mixed plans: how far the first-order estimate can be trusted.

    python -m benchmarks.prediction                                # tiny-gpt, tiny-bert, a CNN and an MLP; no network
    python -m benchmarks.prediction --model FOLDER                 # and a language model of your own
    python -m benchmarks.prediction --only mlp --plans 50 --json
    python -m benchmarks.prediction --alone --model FOLDER --measured CACHE    # goes on where it was interrupted

A plan draws the shares of fp32, bf16 and fp16 from a flat Dirichlet distribution, then every vertex's format among its
admissible ones by these shares. Both errors are relative L2 over a set of inputs: over the calibration inputs, where
the sensitivities were taken, and for the first `--heldout` plans over as many held-out ones too. The bar is that at
least 95% of the ratios on the calibration inputs lie within [0.8, 1.25].

The prediction is a mean over how most of the roundings may fall; the measured error is one fall of them. On a single
short text a few numbers can dominate it (a massive activation, its norm), so that even a prediction without any error
would often be off by more than a quarter: give enough `--inputs` for the roundings to average. Language models read
passages of the built-in plays, evenly spaced; the CNN and the MLP are trained for seconds on synthetic classes.

Two more figures: even / odd of the antithetic test under uniform formats (`precision.validity`, one input), and with
`--single N` Spearman's correlation of predicted and measured error over N plans that store one op in bf16.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
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
from cohomcli.precision.execute import Emulator, uniform
from cohomcli.precision.inputs import TextOptions, text_inputs
from cohomcli.precision.output_norm import OutputNorm, bind
from cohomcli.precision.ranges import admissibility, ranges
from cohomcli.precision.sensitivity import SensitivityOptions, predict, sensitivity
from cohomcli.precision.spec import Admissibility, ComputationGraph, Plan
from cohomcli.precision.validity import curvature_ratios

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
class Wanted:
    """What to run: plans on the calibration inputs, the first `n_heldout` on the others too, and single-op plans."""

    n_plans: int
    n_heldout: int
    n_single: int
    n_probes: int
    seed: int
    folder: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """One model's lines; `even_odd` by format. Seconds are of this process's CPU."""

    model: str
    n_ops: int
    n_inputs: int
    n_probes: int
    n_plans: int
    calibration: Spread
    heldout: Spread | None
    errors: tuple[float, float]
    even_odd: dict[str, float]
    spearman: float | None
    seconds_scoring: float
    seconds_measuring: float


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
    """A trained classifier with as many calibration as held-out inputs."""
    model, calls = trained(build, shape, 2 * n_inputs)
    return Subject(name, capture(model, calls[0]), calls[:n_inputs], calls[n_inputs:])


def trained(build: Callable[[], nn.Module], shape: tuple[int, ...], n_inputs: int) -> tuple[nn.Module, list[Example]]:
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
    return model, [Example((samples(8)[0],)) for _ in range(n_inputs)]


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


class Measured:
    """Measured errors of plans on one set of inputs, kept in `folder` from run to run under everything they depend on.

    That is the plan, and of model and inputs the program and its float64 outputs, whose digest names the file.
    """

    def __init__(self, subject: Subject, inputs: Sequence[Example], emulate: Emulator, folder: Path | None) -> None:
        self.inputs, self.emulate = inputs, emulate
        self.norm: OutputNorm = bind(subject.captured, inputs, "rel-l2")
        self.path = None if folder is None else folder / f"{subject.name}-{self._digest(subject)}.json"
        self.errors: dict[str, float] = {}
        if self.path is not None and self.path.exists():
            self.errors = json.loads(self.path.read_text(encoding="utf-8"))

    def _digest(self, subject: Subject) -> str:
        digest = hashlib.sha256(" ".join(i.op for i in subject.captured.program.instructions).encode())
        for row in self.norm.references:
            for reference in row:
                digest.update(reference.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def error(self, plan: Plan) -> float:
        """The plan's error, measured now if it has never been."""
        key = hashlib.sha256(" ".join(plan.formats).encode()).hexdigest()
        if key not in self.errors:
            self.errors[key] = self.norm.error(self.emulate.outputs(plan, self.inputs))
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(json.dumps(self.errors), encoding="utf-8")
        return self.errors[key]


def examine(subject: Subject, wanted: Wanted) -> Outcome:
    """Predict and measure random plans, and single-op ones where they are asked for."""
    captured, graph = subject.captured, subject.captured.graph
    admissible = admissibility(graph, ranges(captured, subject.calibration), FORMATS)
    started = time.process_time()
    options = SensitivityOptions(FORMATS, n_probes=wanted.n_probes)
    found = sensitivity(captured, subject.calibration, options, admissible)
    scored = time.process_time()
    rng = np.random.default_rng(wanted.seed)
    plans = [random_plan(graph, admissible, rng) for _ in range(wanted.n_plans)]
    single = single_plans(captured, admissible, wanted.n_single)
    predicted = np.array([predict(found, plan) for plan in plans])
    emulate = Emulator(captured)
    calibration = Measured(subject, subject.calibration, emulate, wanted.folder)
    errors = _errors(subject.name, calibration, plans)
    heldout = None
    if wanted.n_heldout:
        unseen = Measured(subject, subject.heldout, emulate, wanted.folder)
        heldout = spread(predicted[: wanted.n_heldout] / _errors(subject.name, unseen, plans[: wanted.n_heldout]))
    return Outcome(
        model=subject.name,
        n_ops=sum(v.kind == "op" for v in graph.vertices),
        n_inputs=len(subject.calibration),
        n_probes=wanted.n_probes,
        n_plans=wanted.n_plans,
        calibration=spread(predicted / errors),
        heldout=heldout,
        errors=(float(errors.min()), float(errors.max())),
        even_odd=curvature_ratios(captured, subject.calibration[:1], FORMATS[1:], admissible),
        spearman=_spearman([predict(found, p) for p in single], _errors(subject.name, calibration, single)),
        seconds_scoring=scored - started,
        seconds_measuring=time.process_time() - scored,
    )


def single_plans(captured: Captured, admissible: Admissibility, count: int) -> list[Plan]:
    """`count` plans, evenly spaced through the ops, with one op in bf16 and everything else in fp32."""
    ops = [v.index for v in captured.graph.vertices if v.kind == "op" and admissible.allowed[v.index, 1]]
    chosen = [ops[(2 * n + 1) * len(ops) // (2 * count)] for n in range(min(count, len(ops)))]
    fp32 = uniform(captured, "fp32").formats
    return [Plan(tuple("bf16" if v == op else fmt for v, fmt in enumerate(fp32))) for op in chosen]


def _spearman(predicted: Sequence[float], measured: NDArray[np.float64]) -> float | None:
    from scipy.stats import spearmanr

    return float(spearmanr(predicted, measured).statistic) if len(predicted) > 2 else None


def _errors(name: str, measured: Measured, plans: Sequence[Plan]) -> NDArray[np.float64]:
    """The measured errors (n_plans,), with a line of progress on a terminal."""
    found = []
    for n, plan in enumerate(plans):
        found.append(measured.error(plan))
        if sys.stderr.isatty():
            print(f"\r{name}: {n + 1} of {len(plans)} plans", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty() and plans:
        print(file=sys.stderr)
    return np.array(found)


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
    if outcome.heldout is not None:
        print(_row(outcome, "held out", outcome.heldout))
    even_odd = ", ".join(f"{fmt} {ratio:.2%}" for fmt, ratio in outcome.even_odd.items())
    rank = "" if outcome.spearman is None else f"; Spearman of single ops {outcome.spearman:.3f}"
    print(
        f"{'':20s} {outcome.n_plans} plans on {outcome.n_inputs} inputs, errors from {outcome.errors[0]:.1e} to "
        f"{outcome.errors[1]:.1e}; {outcome.n_probes} adjoints per input; even / odd {even_odd}{rank}; scoring "
        f"{outcome.seconds_scoring:.1f} s, measuring {outcome.seconds_measuring:.0f} s of CPU",
        flush=True,
    )


def main() -> None:
    """Print lines per model: on the calibration inputs, where the bar is, and on the held-out ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", action="append", default=[], metavar="REF", help="a model folder or name, added")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="tiny-gpt, tiny-bert, cnn or mlp")
    parser.add_argument("--alone", action="store_true", help="only what --model names")
    parser.add_argument("--plans", type=int, default=200)
    parser.add_argument("--heldout", type=int, default=50, help="so many plans are run on held-out inputs too")
    parser.add_argument("--single", type=int, default=0, help="plans with one op in bf16")
    parser.add_argument("--measured", type=Path, metavar="FOLDER", help="keep measured errors there, and reuse them")
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
    asked_for = Wanted(asked.plans, asked.heldout, asked.single, asked.probes, asked.seed, asked.measured)
    for make in wanted:
        outcomes.append(examine(make(), asked_for))
        if not asked.json:
            _report(outcomes[-1])
    if asked.json:
        print(json.dumps({"band": BAND, "quantiles": QUANTILES, "models": [asdict(o) for o in outcomes]}, indent=2))


if __name__ == "__main__":
    main()
