"""How far outputs are from their float64 reference, and the adjoint directions whose mean square is that distance.

Three norms, over a list of inputs (the calibration or the held-out set):
- `rel-l2`: ||y' - y|| / ||y|| per output tensor over all inputs together; several outputs add in squares, so that a
  bound holds for each of them.
- `max-abs`: the largest |y' - y| of any entry.
- `kl`: mean over positions of KL(softmax(y) || softmax(y')) in nats, for a model whose one output is logits.

Positions that an attention mask hides do not count, where an output has the mask's leading shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.precision.capture import Captured
from cohomcli.precision.execute import run
from cohomcli.precision.spec import ErrorNorm

Outputs = tuple[torch.Tensor, ...]
_MASKS = ("decoder_attention_mask", "attention_mask")


@dataclass(frozen=True)
class OutputNorm:
    """A norm bound to reference outputs: `references[i][o]` float64, `weights[i][o]` 1 or 0 per entry, broadcastable.

    `crest` is the ratio of largest to root-mean-square output error that `max-abs` predictions assume.
    """

    kind: ErrorNorm
    references: tuple[Outputs, ...]
    weights: tuple[Outputs, ...]
    crest: float = 1.0

    def error(self, outputs: Sequence[Outputs]) -> float:
        """The error of `outputs`, one tuple per input; nan when an output that counts is not finite."""
        if self.kind == "kl":
            return self._kl(outputs)
        differences = [
            [_counted(y.double() - r, w) for y, r, w in zip(*row, strict=True)] for row in self._rows(outputs)
        ]
        if self.kind == "max-abs":
            return max(_nan_max(d) for row in differences for d in row)
        squares = [sum(float(row[o].square().sum()) for row in differences) for o in range(len(self.scales))]
        return math.sqrt(sum(s / scale**2 for s, scale in zip(squares, self.scales, strict=True)))

    def _rows(self, outputs: Sequence[Outputs]) -> list[tuple[Outputs, Outputs, Outputs]]:
        return list(zip(outputs, self.references, self.weights, strict=True))

    def _kl(self, outputs: Sequence[Outputs]) -> float:
        total = 0.0
        for (y,), (reference,), (weight,) in self._rows(outputs):
            divergence = _divergence(reference.log_softmax(-1), y.double().log_softmax(-1))
            total += float(_counted(divergence.sum(-1, keepdim=True), weight).sum())
        return total / self.n_positions

    @cached_property
    def scales(self) -> list[float]:
        """||y_o|| over all inputs, per output."""
        squares = [
            sum(
                float(_counted(row[o], w[o]).square().sum())
                for row, w in zip(self.references, self.weights, strict=True)
            )
            for o in range(len(self.references[0]))
        ]
        return [math.sqrt(s) or 1.0 for s in squares]

    @cached_property
    def n_positions(self) -> float:
        """Rows of the first output that count, over all inputs."""
        return sum(
            float(w[0].expand(*r[0].shape[:-1], 1).sum()) for r, w in zip(self.references, self.weights, strict=True)
        )

    @cached_property
    def n_entries(self) -> float:
        """Output entries that count, over all inputs and outputs."""
        rows = zip(self.references, self.weights, strict=True)
        return sum(float(w.expand(r.shape).sum()) for row, ws in rows for r, w in zip(row, ws, strict=True))

    def seeds(self, index: int, n_probes: int, generator: torch.Generator, dtype: torch.dtype) -> list[torch.Tensor]:
        """Directions lambda (n_probes, *shape) per output of input `index` with E <lambda, dy>^2 = its squared error.

        Gaussian directions have E <lambda, dy>^2 = ||dy||^2 (Hutchinson). For `kl` they have the covariance of the
        Fisher information diag(p) - p p^T, whose square root is sqrt(p) z - p <sqrt(p), z>: to second order
        KL = 1/2 dy^T F dy. For `max-abs` the mean square is multiplied by the crest factor squared.
        """
        found = []
        for o, (reference, weight) in enumerate(zip(self.references[index], self.weights[index], strict=True)):
            z = torch.randn((n_probes, *reference.shape), generator=generator, dtype=torch.float32).to(dtype)
            if self.kind == "kl":
                p = reference.softmax(-1).to(dtype)
                z = p.sqrt() * z - p * (p.sqrt() * z).sum(-1, keepdim=True)
            found.append(z.mul_(weight.to(dtype) * self._scale(o)))
        return found

    def _scale(self, output: int) -> float:
        if self.kind == "rel-l2":
            return 1.0 / self.scales[output]
        return math.sqrt(0.5 / self.n_positions) if self.kind == "kl" else self.crest / math.sqrt(self.n_entries)

    def with_crest(self, outputs: Sequence[Outputs]) -> OutputNorm:
        """The same norm with the crest factor (largest over root mean square) that a trial run's errors have."""
        largest = replace(self, kind="max-abs").error(outputs)
        squares = sum(
            float(_counted(y.double() - r, w).square().sum())
            for row in self._rows(outputs)
            for y, r, w in zip(*row, strict=True)
        )
        rms = math.sqrt(squares / self.n_entries)
        return replace(self, crest=largest / rms if rms > 0 and math.isfinite(rms) else 1.0)


def bind(captured: Captured, inputs: Sequence[Any], kind: ErrorNorm) -> OutputNorm:
    """The norm `kind` around the float64 outputs for `inputs`.

    Raises:
        UsageError: no inputs, an unknown norm, or `kl` for a model with several outputs.
        AnalysisIncomplete: the reference itself is not finite.
    """
    if kind not in ("rel-l2", "max-abs", "kl"):
        raise UsageError(f"unknown norm {kind!r}", "known: rel-l2, max-abs, kl")
    if not inputs:
        raise UsageError("no inputs to measure errors on", "give at least one")
    if kind == "kl" and len(captured.program.outputs) != 1:
        names = ", ".join(name for name, _ in captured.program.outputs)
        raise UsageError(f"kl needs one output of logits, the model has {names}", "choose one output")
    references = tuple(run(captured, x, torch.float64) for x in inputs)
    weights = tuple(_weights(x, row) for x, row in zip(inputs, references, strict=True))
    norm = OutputNorm(kind, references, weights)
    counted = (
        _counted(r, w) for row, ws in zip(references, weights, strict=True) for r, w in zip(row, ws, strict=True)
    )
    if not all(bool(torch.isfinite(r).all()) for r in counted):
        raise AnalysisIncomplete("the model's own output is not finite in float64", "check the model and its inputs")
    return norm


def _divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """The terms p (q/p - 1 - log(q/p)) >= 0 of KL(p || q), whose sum it is because p and q have the same sum.

    The usual terms p log(p/q) cancel: their sum has an error of 1e-16, which is what fp32 itself reaches.
    """
    p, change = log_p.exp(), log_q - log_p
    return torch.where(p == 0.0, log_q.exp(), p * (torch.expm1(change) - change))


def joined(first: OutputNorm, second: OutputNorm) -> OutputNorm:
    """One norm around the inputs of both, the first's before the second's."""
    return replace(first, references=first.references + second.references, weights=first.weights + second.weights)


def _weights(inputs: Any, outputs: Outputs) -> Outputs:
    """Per output ones, or the attention mask where its shape leads the output's."""
    given = inputs.kwargs if hasattr(inputs, "kwargs") else inputs
    given = given if isinstance(given, dict) else {}
    masks = [given[name] for name in _MASKS if isinstance(given.get(name), torch.Tensor)]
    found = []
    for output in outputs:
        fits = [m for m in masks if output.dim() > m.dim() and tuple(output.shape[: m.dim()]) == tuple(m.shape)]
        weight = fits[0].double()[(...,) + (None,) * (output.dim() - fits[0].dim())] if fits else output.new_ones(())
        found.append(weight)
    return tuple(found)


def _counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x` with zeros where the weight is zero, whatever stands there."""
    return x.masked_fill(weight.expand(x.shape) == 0, 0.0)


def _nan_max(x: torch.Tensor) -> float:
    return math.nan if bool(torch.isnan(x).any()) else float(x.abs().amax())


def budget(kind: ErrorNorm, eps: float) -> float:
    """The sum of scores that a target error `eps` allows: eps^2, or eps itself for kl, which is a square already."""
    return eps if kind == "kl" else eps**2


def from_scores(kind: ErrorNorm, total: float) -> float:
    """The error that a sum of scores stands for; the inverse of `budget`."""
    return total if kind == "kl" else math.sqrt(total)
