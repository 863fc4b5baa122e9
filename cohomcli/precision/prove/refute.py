"""Refutations: for every narrow format, what can be proved about uniform use of it at a tolerance, and what was not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cohomcli.errors import AnalysisIncomplete
from cohomcli.precision.baselines import converted_outputs
from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import Emulator
from cohomcli.precision.output_norm import Outputs, bind
from cohomcli.precision.prove.collision import collisions
from cohomcli.precision.prove.curvature import curvature
from cohomcli.precision.prove.lowering import as_array, known_values, named_inputs
from cohomcli.precision.prove.package import Package
from cohomcli.precision.prove.witness import Witness, worst
from cohomcli.precision.result import Refutation
from cohomcli.precision.spec import ErrorNorm
from cohomcli.progress import Progress, silent
from cohomcli.verify.arrays import balls
from cohomcli.verify.enclose import enclose
from cohomcli.verify.errors_of import Truth, divergence_below, error_below, gaps_to, truths
from cohomcli.verify.rounding import STORABLE, distance, storage_format

_HALVES = ("fp16", "bf16")
REFUTABLE = ("bf16", "fp16", "e4m3", "e5m2", "fp32")
_UNFIT = {
    "int8": "int8 is for weights: there is no uniform run in it, and its numbers have a scale for every channel",
    "fp64": "fp64 is not tried: the search for witnesses measures against float64",
}


@dataclass(frozen=True)
class RefuteOptions:
    """`epsilon` in `norm`, and the formats to try.

    `native` is the module itself, where it is at hand: it is also converted to 16 bits and run by PyTorch's kernels.
    """

    epsilon: float
    norm: ErrorNorm = "rel-l2"
    formats: tuple[str, ...] = ("bf16", "fp16")
    native: nn.Module | None = None


def refute(
    captured: Captured,
    inputs: Sequence[Any],
    options: RefuteOptions,
    package: Package,
    progress: Progress = silent,
) -> tuple[Refutation, ...]:
    """Try the three obstructions for every format; what is found is written into `package` and checked.

    Formats of eight bits have a power-of-two scale of their own per tensor in witnesses, and none in the other two.

    Raises:
        AnalysisIncomplete: the model has an operation without rigorous mathematics, or memory does not suffice.
    """
    _ = package.graph  # refuses unknown operations before anything is run
    formats = [f for f in options.formats if f in REFUTABLE and f in STORABLE]
    emulate = Emulator(captured)
    found: list[Refutation] = []
    for n, fmt in enumerate(formats):
        progress("refute", n, len(formats))
        witness = worst(captured, fmt, inputs, options.norm, emulate)
        found += _Attempt(captured, options, package, fmt, witness, progress).all()
        found.append(collisions(captured, inputs, fmt, options, package))
    found.append(curvature(captured, inputs[0], options, package))
    for fmt, why in _UNFIT.items():
        if fmt in options.formats:
            found.append(Refutation(fmt, "witness", why, options.epsilon, options.norm, None))
    progress("refute", len(formats), len(formats))
    return tuple(found)


@dataclass(frozen=True)
class _Run:
    """One low-precision run of the program: under which semantics, what it is called, what came out, how far off."""

    semantics: str
    plan: str
    file: str
    outputs: Outputs
    error: float


class _Attempt:
    """The format and witness obstructions at one input, which share its enclosure."""

    def __init__(
        self,
        captured: Captured,
        options: RefuteOptions,
        package: Package,
        fmt: str,
        witness: Witness,
        progress: Progress,
    ) -> None:
        self.captured, self.options, self.package = captured, options, package
        self.fmt, self.witness, self.progress = fmt, witness, progress
        self.counted = counted_masks(captured, witness.inputs)
        self.runs = [_Run("store", f"uniform {fmt}", f"witness-{fmt}", witness.outputs, witness.error)]
        if options.native is not None and fmt in _HALVES:
            self.runs += _native_run(captured, options.native, fmt, witness.inputs, options.norm)

    def all(self) -> list[Refutation]:
        """Both obstructions."""
        if not self._format_is_worth_it() and all(run.error <= self.options.epsilon for run in self.runs):
            return [self._no_format(), *map(self._no_witness, self.runs)]
        graph = self.package.graph
        wanted = set(graph.outputs.values())
        known = known_values(self.captured, self.witness.inputs)
        enclosed = enclose(graph, known, wanted, progress=self.progress)
        self.precision = enclosed.precision
        values = {name: balls(enclosed.values[slot]) for name, slot in graph.outputs.items()}
        self.found = truths(values, self.counted)
        return [self._format(), *map(self._witness, self.runs)]

    def _tensors(self) -> dict[str, NDArray[Any]]:
        inputs = {f"input:{k}": as_array(v) for k, v in named_inputs(self.captured, self.witness.inputs).items()}
        return inputs | {f"counted:{name}": mask for name, mask in self.counted.items()}

    # --- any algorithm ---

    def _format_is_worth_it(self) -> bool:
        return self.options.norm != "kl" and self._estimated_distance() > self.options.epsilon

    def _estimated_distance(self) -> float:
        """The error of the true outputs rounded to the format, from float64: a guess, to spare the enclosure."""
        target = storage_format(self.fmt)
        norm = bind(self.captured, [self.witness.inputs], self.options.norm)
        rounded = tuple(r.to(target.torch_dtype).double() for r in norm.references[0])
        error = norm.error([rounded])
        return error if math.isfinite(error) else math.inf

    def _format(self) -> Refutation:
        if not self._format_is_worth_it():
            return self._no_format()
        target = storage_format(self.fmt)
        claim: dict[str, Any] = {"format": self.fmt, "norm": self.options.norm, "epsilon": self.options.epsilon}
        found, place = self._narrowed(lambda t: [distance(a, b, target) for a, b in t.ends])
        error = error_below(self.options.norm, found, lambda t: [distance(a, b, target) for a, b in t.ends])
        claim |= place | {"error": error}
        tensors = self._tensors_for(place)
        return self._written("format", f"format-{self.fmt}", claim, tensors, error) or self._no_format()

    def _narrowed(self, gaps: Any) -> tuple[list[Truth], dict[str, Any]]:
        """For the largest absolute error, the one entry that has it; otherwise all outputs."""
        names = [truth.name for truth in self.found]
        if self.options.norm != "max-abs":
            return self.found, {"outputs": names, "entry": None}
        best, where, entry = -1, self.found[0], 0
        for truth in self.found:
            places = np.flatnonzero(truth.counted.ravel()).tolist()
            for place, gap in zip(places, gaps(truth), strict=True):
                if gap > best:
                    best, where, entry = gap, truth, place
        mask = np.zeros(where.balls.shape, dtype=bool)
        mask.reshape(-1)[entry] = True
        return [Truth(where.name, where.balls, mask)], {"outputs": [where.name], "entry": entry}

    def _tensors_for(self, place: dict[str, Any]) -> dict[str, NDArray[Any]]:
        tensors = self._tensors()
        if place["entry"] is None:
            return tensors
        return {name: value for name, value in tensors.items() if not name.startswith("counted:")}

    def _no_format(self) -> Refutation:
        if self.options.norm == "kl":
            why = "there is no such bound in KL divergence"
        else:
            why = f"the outputs rounded to {self.fmt} err by about {self._estimated_distance():.3g} at the worst input"
        return self._missing("format", f"no proof that storing the output in {self.fmt} is too coarse: {why}")

    # --- this program ---

    def _witness(self, run: _Run) -> Refutation:
        if run.error <= self.options.epsilon:
            return self._no_witness(run)
        recorded = self._recorded(run)
        claim: dict[str, Any] = {
            "plan": run.plan,
            "semantics": run.semantics,
            "norm": self.options.norm,
            "epsilon": self.options.epsilon,
        }
        finite = all(bool(np.isfinite(recorded[t.name][t.counted]).all()) for t in self.found)
        place: dict[str, Any] = {"outputs": [t.name for t in self.found], "entry": None}
        error = None
        if finite:
            error, place = self._proved_error(recorded)
        claim |= place | {"error": error}
        tensors = self._tensors_for(place) | {f"recorded:{name}": recorded[name] for name in place["outputs"]}
        return self._written("witness", run.file, claim, tensors, error) or self._no_witness(run)

    def _recorded(self, run: _Run) -> dict[str, NDArray[Any]]:
        names = [name for name, _ in self.captured.program.outputs]
        return {n: as_array(y.to(torch.float32)) for n, y in zip(names, run.outputs, strict=True)}

    def _proved_error(self, recorded: dict[str, NDArray[Any]]) -> tuple[float, dict[str, Any]]:
        if self.options.norm == "kl":
            truth = self.found[0]
            return divergence_below(truth, recorded[truth.name], self.precision), {
                "outputs": [truth.name],
                "entry": None,
            }
        found, place = self._narrowed(lambda t: gaps_to(recorded[t.name], t))
        return error_below(self.options.norm, found, lambda t: gaps_to(recorded[t.name], t)), place

    def _no_witness(self, run: _Run) -> Refutation:
        why = f"at the worst input of the search it errs by {run.error:.3g}"
        text = f"no input found where {run.plan} (semantics {run.semantics!r}) errs by more than epsilon: {why}"
        return self._missing("witness", text)

    # --- both ---

    def _written(
        self, kind: str, file: str, claim: dict[str, Any], tensors: dict[str, NDArray[Any]], error: float | None
    ) -> Refutation | None:
        if error is not None and error <= self.options.epsilon:
            return None
        written = self.package.write(kind, file, claim, tensors, self.precision)
        if written is None:
            return None
        o = self.options
        return Refutation(self.fmt, kind, written.statement, o.epsilon, o.norm, error, written.path.name)

    def _missing(self, kind: str, text: str) -> Refutation:
        return Refutation(self.fmt, kind, text, self.options.epsilon, self.options.norm, None)


def _native_run(captured: Captured, model: nn.Module, fmt: str, inputs: Any, norm: ErrorNorm) -> list[_Run]:
    """The module converted to 16 bits and run by PyTorch itself; nothing where PyTorch cannot run it."""
    try:
        outputs = converted_outputs(captured, model, storage_format(fmt).torch_dtype, inputs)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError):
        return []  # no kernel for some op in this dtype, or the model's code mixes dtypes: there is no such program
    error = bind(captured, [inputs], norm).error([outputs])
    called = {"fp16": "half()", "bf16": "bfloat16()"}[fmt]
    error = error if math.isfinite(error) else math.inf
    return [_Run("native", f"{fmt} by {called}", f"witness-native-{fmt}", outputs, error)]


def counted_masks(captured: Captured, inputs: Any) -> dict[str, NDArray[np.bool_]]:
    """Masks of the outputs where an attention mask hides something; outputs without one are not named."""
    try:
        norm = bind(captured, [inputs], "max-abs")
    except AnalysisIncomplete:
        return {}
    masks = {}
    for (name, _), reference, weight in zip(captured.program.outputs, norm.references[0], norm.weights[0], strict=True):
        mask = (weight.expand(reference.shape) != 0).contiguous().numpy()
        if not mask.all():
            masks[name] = mask
    return masks
