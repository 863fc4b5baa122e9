"""Prune a model block by block in one pass over calibration data; every map sees what the pruned ones before give."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.models.layout import Stack
from cohomcli.progress import Progress, silent
from cohomcli.pruning.channels import remove_columns
from cohomcli.pruning.parts import Anatomy, Group, anatomy_of, at, is_transposed
from cohomcli.pruning.pattern import Pattern, check_fits
from cohomcli.pruning.results import PrunedMap, PruningResult
from cohomcli.pruning.solve import METHODS, Problem, choose_shrink
from cohomcli.pruning.stream import Seen, advance, first_calls, look

STEP = "prune"
SHRINKS = {"chain"}  # methods whose lambda is chosen where none is given
CHAINED = {"chain"}  # methods whose target is the dense model's state
DEFAULT_SHRINK = 0.0


@dataclass(frozen=True)
class PruneOptions:
    """`shrink` None is chosen for every matrix on the half of the calibration data that the solution did not see."""

    method: str
    pattern: Pattern
    shrink: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        METHODS.get(self.method)
        if self.shrink is not None and not 0 <= self.shrink <= 1:
            raise UsageError(f"--lambda {self.shrink} must lie in [0, 1]", "auto chooses it for every matrix")
        if self.pattern.kind == "mlp" and self.method not in ("chain", "wanda", "magnitude", "random"):
            raise UsageError(f"{self.method} removes no channels", "chain, wanda, magnitude and random do")


def prune(
    model: nn.Module,
    stack: Stack,
    batches: Sequence[dict[str, Tensor]],
    options: PruneOptions,
    progress: Progress = silent,
) -> PruningResult:
    """Prune `model` in place; `stack` is its only stack, `batches` are inputs of one shape, at least two.

    Raises:
        UsageError: a pattern that does not fit a matrix, or fewer than two batches.
        InputRefused: blocks of a class that is not known.
        AnalysisIncomplete: calibration gives numbers that are not finite.
    """
    return _Pruner(model, stack, batches, options, progress).run()


class _Pruner:
    """The state of one pass."""

    def __init__(
        self,
        model: nn.Module,
        stack: Stack,
        batches: Sequence[dict[str, Tensor]],
        options: PruneOptions,
        report: Progress,
    ) -> None:
        if len(batches) < 2:
            raise UsageError("pruning needs at least two calibration batches", "give more --calibration-tokens")
        self.model, self.stack, self.options, self.report = model, stack, options, report
        self.anatomies = [anatomy_of(block) for block in stack.blocks]
        self._check()
        self.calls = first_calls(model, stack, batches)
        self.dense = [call.hidden for call in self.calls]
        self.sparse = [hidden.clone() for hidden in self.dense]
        self.maps: list[PrunedMap] = []
        self.drift: list[float] = []
        self.n_tokens = sum(hidden.shape[0] * hidden.shape[1] for hidden in self.dense)

    def _check(self) -> None:
        for index, (block, anatomy) in enumerate(zip(self.stack.blocks, self.anatomies, strict=True)):
            for group in anatomy.groups:
                for path in group.paths:
                    check_fits(self.options.pattern, f"layer_{index}.{path}", _matrix(at(block, path)).shape[1])

    def run(self) -> PruningResult:
        """Prune every block and say what became of it."""
        begun = time.monotonic()
        before = _counts(self.model)
        n_layer = len(self.stack.blocks)
        self.report(STEP, 0, n_layer)
        for index, (block, anatomy) in enumerate(zip(self.stack.blocks, self.anatomies, strict=True)):
            parent = copy.deepcopy(block)
            if self.options.pattern.kind == "mlp":
                self._channels(index, block, parent, anatomy)
            else:
                for group in anatomy.groups:
                    self._group(index, block, parent, anatomy, group)
            advance(parent, self.calls, self.dense)
            advance(block, self.calls, self.sparse)
            self.drift.append(self._drift())
            self.report(STEP, index + 1, n_layer)
        after = _counts(self.model)
        zeros = sum(m.sparsity * m.shape[0] * m.shape[1] for m in self.maps)
        share = zeros / sum(m.shape[0] * m.shape[1] for m in self.maps)
        return PruningResult(
            method=self.options.method,
            pattern=str(self.options.pattern),
            sparsity=share,
            n_calibration_tokens=self.n_tokens,
            maps=tuple(self.maps),
            drift=tuple(self.drift),
            n_parameters=(before[0], after[0]),
            n_nonzero=(before[1], after[1]),
            seconds=time.monotonic() - begun,
        )

    def _drift(self) -> float:
        moved = sum(float((a - b).double().pow(2).sum()) for a, b in zip(self.dense, self.sparse, strict=True))
        return moved / max(sum(float(a.double().pow(2).sum()) for a in self.dense), 1e-300)

    # ---- one group of maps ----------------------------------------------------------------------------------------

    def _group(self, index: int, block: nn.Module, parent: nn.Module, anatomy: Anatomy, group: Group) -> None:
        halves = self._moments(block, parent, anatomy, group)
        for path in group.paths:
            module = at(block, path)
            problem = self._problem(module, _sum(halves), group)
            solver = METHODS.get(self.options.method)
            shrink = self._shrink(module, halves, group, solver)
            solution = solver(replace(problem, shrink=shrink))
            self._note(index, path, problem, solution, shrink)
            _store(module, solution)

    def _shrink(
        self, module: nn.Module, halves: Sequence[_Moments], group: Group, solver: Callable[[Problem], Tensor]
    ) -> float:
        if self.options.shrink is not None:
            return self.options.shrink
        if self.options.method not in SHRINKS:
            return DEFAULT_SHRINK
        fit, held = (self._problem(module, half, group) for half in halves)
        return choose_shrink(fit, held, solver)

    def _moments(self, block: nn.Module, parent: nn.Module, anatomy: Anatomy, group: Group) -> list[_Moments]:
        """Second moments of the two halves of the calibration data, in turn batch by batch."""
        halves = [_Moments(), _Moments()]
        chained = self.options.method in CHAINED
        bias = getattr(at(block, group.paths[0]), "bias", None) if group.role != "reader" else None
        for at_, call in enumerate(self.calls):
            pruned = look(block, anatomy, group, self.sparse[at_], call, outputs=False)
            _refuse_non_finite(pruned)
            goal = None
            if chained:
                dense = look(parent, anatomy, group, self.dense[at_], call, outputs=group.role != "reader")
                goal = _goal(dense, pruned, group, bias)
            halves[at_ % 2].add(pruned.inputs, goal)
        return halves

    def _problem(self, module: nn.Module, moments: _Moments, group: Group) -> Problem:
        weight = _matrix(module).detach().float()
        gram = (moments.gram / max(moments.rows, 1)).float()
        if moments.cross is None:
            target = weight @ gram
        else:
            cross = (moments.cross / max(moments.rows, 1)).float()
            target = weight @ cross if group.role == "reader" else cross
        return Problem(weight, gram, target, self.options.pattern, seed=self.options.seed + len(self.maps))

    def _note(self, index: int, path: str, problem: Problem, solution: Tensor, shrink: float) -> None:
        change = problem.weight - solution if solution.shape == problem.weight.shape else None
        total = float(((problem.weight @ problem.gram) * problem.weight).sum())
        lost = float(((change @ problem.gram) * change).sum()) if change is not None else 0.0
        sparsity = float((solution == 0).float().mean())
        shape = (problem.weight.shape[0], problem.weight.shape[1])
        self.maps.append(PrunedMap(f"layer_{index}.{path}", shape, sparsity, shrink, lost / max(total, 1e-300)))

    # ---- channels of an MLP ---------------------------------------------------------------------------------------

    def _channels(self, index: int, block: nn.Module, parent: nn.Module, anatomy: Anatomy) -> None:
        """Slice the MLP: the same number of channels goes in every block, so that the stock classes load the result."""
        group = next(g for g in anatomy.groups if g.role == "mlp")
        halves = self._moments(block, parent, anatomy, group)
        reader = at(block, anatomy.reader)
        problem = self._problem(reader, _sum(halves), group)
        width = problem.weight.shape[1]
        count = int(width * self.options.pattern.sparsity)
        shrink = self.options.shrink if self.options.shrink is not None else 0.3
        kept, weight = self._columns(problem, count, shrink, block, anatomy)
        whole = torch.zeros_like(problem.weight)
        whole[:, kept] = weight
        self._note(index, anatomy.reader, problem, whole, shrink)
        _resize(reader, weight)
        for path in anatomy.channels:
            writer = at(block, path)
            _resize(writer, _matrix(writer).detach()[kept], kept)
        _remember_width(self.model, anatomy.width, width - count)

    def _columns(
        self, problem: Problem, count: int, shrink: float, block: nn.Module, anatomy: Anatomy
    ) -> tuple[Tensor, Tensor]:
        if self.options.method == "chain":
            found = remove_columns(replace(problem, shrink=shrink), count)
            return found.kept, found.weight
        scores = {
            "wanda": lambda: problem.weight.abs().sum(0) * problem.gram.diagonal().clamp_min(0).sqrt(),
            "magnitude": lambda: problem.weight.pow(2).sum(0),
            "random": lambda: torch.rand(
                problem.weight.shape[1], generator=torch.Generator().manual_seed(problem.seed)
            ),
        }[self.options.method]()
        kept = scores.argsort(stable=True)[count:].sort().values
        return kept, problem.weight[:, kept]


class _Moments:
    """Running sums over rows: x x^T of the inputs, and goal x^T where there is a goal; float32 products of batches
    added in float64.
    """

    def __init__(self) -> None:
        self.gram: Any = 0.0
        self.cross: Any = None
        self.rows = 0

    def add(self, inputs: Tensor, goal: Tensor | None) -> None:
        """Take one batch in: `inputs` (rows, in), `goal` (rows, any)."""
        self.gram = self.gram + (inputs.T @ inputs).double()
        if goal is not None:
            product = (goal.T @ inputs).double()
            self.cross = product if self.cross is None else self.cross + product
        self.rows += len(inputs)


def _sum(halves: Sequence[_Moments]) -> _Moments:
    whole = _Moments()
    whole.gram = halves[0].gram + halves[1].gram
    whole.cross = None if halves[0].cross is None else halves[0].cross + halves[1].cross
    whole.rows = halves[0].rows + halves[1].rows
    return whole


def _goal(dense: Seen, pruned: Seen, group: Group, bias: Tensor | None) -> Tensor:
    """What the map is to put out: readers see dense inputs; writers complete the dense residual state."""
    if group.role == "reader":
        return dense.inputs
    goal = dense.residual + dense.outputs - pruned.residual
    return goal if bias is None else goal - bias


def _refuse_non_finite(seen: Seen) -> None:
    if not bool(torch.isfinite(seen.inputs).all()):
        raise AnalysisIncomplete("activations on the calibration texts are not finite", "check the model and its texts")


def _matrix(module: Any) -> Tensor:
    weight: Tensor = module.weight
    return weight.T if is_transposed(module) else weight


@torch.no_grad()
def _store(module: Any, solution: Tensor) -> None:
    module.weight.copy_((solution.T if is_transposed(module) else solution).to(module.weight.dtype))


@torch.no_grad()
def _resize(module: Any, matrix: Tensor, kept: Tensor | None = None) -> None:
    """Give the module a smaller weight; with `kept`, its outputs (and bias) are those of these indices."""
    stored = (matrix.T if is_transposed(module) else matrix).contiguous().to(module.weight.dtype)
    module.weight = nn.Parameter(stored, requires_grad=False)
    if kept is not None and module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[kept].clone(), requires_grad=False)
    if is_transposed(module):
        module.nx, module.nf = stored.shape
    else:
        module.out_features, module.in_features = stored.shape


def _remember_width(model: Any, key: str, width: int) -> None:
    setattr(model.config.get_text_config(), key, width)


def _counts(model: nn.Module) -> tuple[int, int]:
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(int((p != 0).sum()) for p in parameters)
