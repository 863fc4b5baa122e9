"""Prune a model block by block in one pass over calibration data; every map sees what the pruned ones before give."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.layout import Stack
from cohomcli.models.memory import give_back
from cohomcli.progress import Progress, silent
from cohomcli.pruning.allocation import outlier_allocation
from cohomcli.pruning.context import Context
from cohomcli.pruning.depth import choose_blocks, count_blocks, drop_blocks
from cohomcli.pruning.experts import count_experts, mixture_of, note_experts, prune_experts
from cohomcli.pruning.heads import count_heads, head_shape
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.parts import Anatomy, Group, anatomy_of, at
from cohomcli.pruning.pattern import Pattern, check_fits
from cohomcli.pruning.protect import Guard
from cohomcli.pruning.ranks import Keep, forget, prune_ranks, rank_of
from cohomcli.pruning.results import PruningResult
from cohomcli.pruning.shelf import Shelf
from cohomcli.pruning.shrinkage import Solver
from cohomcli.pruning.slicing import matrix, store
from cohomcli.pruning.solve import METHODS, Factor
from cohomcli.pruning.stream import Flow
from cohomcli.pruning.structured import fit_before_gap, prune_channels, prune_heads

STEP = "prune"


def prune(
    model: nn.Module,
    stack: Stack,
    batches: Sequence[dict[str, Tensor]],
    options: PruneOptions,
    progress: Progress = silent,
    keep: Keep = forget,
) -> PruningResult:
    """Prune `model` in place; `stack` is its only stack, `batches` are inputs of one shape, at least two.

    `keep` gets the name and the float32 factors of every map that becomes a product of two.

    Hidden states are kept in files of the system's temporary folder while it runs.

    Raises:
        UsageError: a pattern that does not fit a matrix, or fewer than two batches.
        InputRefused: blocks of a class that is not known, or parts that stock classes could not load without.
        AnalysisIncomplete: calibration gives numbers that are not finite.
    """
    if len(batches) < 2:
        raise UsageError("pruning needs at least two calibration batches", "give more --calibration-tokens")
    anatomies = check(model, stack, options)
    with tempfile.TemporaryDirectory(prefix="cohom-") as folder, torch.no_grad():
        flow = Flow(model, stack, batches, Shelf(Path(folder)))
        return prune_flow(Context(model, flow, options), stack, anatomies, progress, keep)


def prune_flow(
    context: Context, stack: Stack, anatomies: Sequence[Anatomy], progress: Progress = silent, keep: Keep = forget
) -> PruningResult:
    """Prune the blocks of `stack` along the streams of `context`; `anatomies` are what `check` gave. As `prune`."""
    return _Pruner(context, stack, anatomies, progress).run(keep)


def check(model: nn.Module, stack: Stack, options: PruneOptions) -> list[Anatomy]:
    """Refuse what will not work before anything is computed; raises as `prune`. Returns every block's anatomy."""
    pattern = options.pattern
    anatomies = [anatomy_of(block) for block in stack.blocks]
    if pattern.kind == "blocks":
        count_blocks(len(stack.blocks), pattern.sparsity)
    _check_experts(model, stack, anatomies, pattern)
    for index, (block, anatomy) in enumerate(zip(stack.blocks, anatomies, strict=True)):
        if pattern.kind == "heads":
            count_heads(head_shape(model, anatomy), pattern.sparsity)
        for path in anatomy.maps:
            out, n_in = matrix(at(block, path)).shape
            check_fits(pattern, f"layer_{index}.{path}", n_in)
            if pattern.kind == "rank":
                rank_of(pattern.sparsity, f"layer_{index}.{path}", (out, n_in))
    guard_of(stack, anatomies, options)
    return anatomies


def _check_experts(model: nn.Module, stack: Stack, anatomies: Sequence[Anatomy], pattern: Pattern) -> None:
    """Refuse experts: where there are none, and what would prune a mixture's matrices one by one."""
    found = [(block, one.experts) for block, one in zip(stack.blocks, anatomies, strict=True) if one.experts]
    if pattern.kind == "experts":
        if not found:
            raise InputRefused(f"{type(model).__name__} has no experts", "prune channels: mlp:0.25")
        for block, path in found:
            count_experts(mixture_of(block, path), pattern.sparsity)
    elif found and pattern.kind != "heads":
        raise InputRefused(
            f"{type(model).__name__} has experts, which {pattern} does not prune", "use experts:0.25 or heads:0.25"
        )


def guard_of(stack: Stack, anatomies: Sequence[Anatomy], options: PruneOptions) -> Guard:
    """What keeps the protected weights of a pass; raises as `Guard`."""
    shapes = {
        f"layer_{index}.{path}": (int(weight.shape[0]), int(weight.shape[1]))
        for index, (block, anatomy) in enumerate(zip(stack.blocks, anatomies, strict=True))
        for path in anatomy.maps
        for weight in [matrix(at(block, path))]
    }
    return Guard(options.protect, shapes, options.pattern)


class _Pruner:
    """One pass over the blocks."""

    def __init__(self, context: Context, stack: Stack, anatomies: Sequence[Anatomy], progress: Progress) -> None:
        self.context, self.stack, self.progress = context, stack, progress
        self.anatomies = anatomies
        self.guard = guard_of(stack, anatomies, context.options)
        self.drift: list[float] = []
        self.gone: list[int] = []

    def run(self, keep: Keep) -> PruningResult:
        """Prune every block and say what became of it."""
        context, n_layer = self.context, len(self.stack.blocks)
        begun, before = time.monotonic(), context.flow.resident.counts()
        self.progress(STEP, 0, n_layer)
        if context.pattern.kind == "blocks":
            self._without_blocks()
        else:
            shape = head_shape(context.model, self.anatomies[0]) if context.pattern.kind == "heads" else None
            patterns = self._patterns()
            for index, (block, anatomy) in enumerate(zip(self.stack.blocks, self.anatomies, strict=True)):
                context.pattern = patterns[index]
                context.flow.enter(index, block, anatomy)
                kept = None
                if context.pattern.kind == "mlp":
                    kept = prune_channels(context, index, block, anatomy)
                elif shape is not None:
                    prune_heads(context, index, block, anatomy, shape)
                elif context.pattern.kind == "experts":
                    prune_experts(context, index, block, anatomy)
                elif context.pattern.kind == "rank":
                    prune_ranks(context, index, block, anatomy, keep)
                else:
                    for group in anatomy.groups:
                        self._group(index, block, group)
                self.drift.append(context.flow.leave(kept))
                self.progress(STEP, index + 1, n_layer)
            if context.pattern.kind == "experts":
                note_experts(context.model, self.stack.blocks, self.anatomies)
        return self._result(before, time.monotonic() - begun)

    def _patterns(self) -> list[Pattern]:
        """The pattern of every block."""
        pattern, blocks = self.context.pattern, self.stack.blocks
        if self.context.options.allocation == "uniform":
            return [pattern] * len(blocks)
        shares = outlier_allocation(self.context.flow, blocks, self.anatomies, pattern.sparsity)
        return [replace(pattern, sparsity=share) for share in shares]

    def _group(self, index: int, block: nn.Module, group: Group) -> None:
        solver: Solver = METHODS.get(self.context.options.method)
        moments, shrinks = self.context.moments(block, group, solver)
        factor = Factor()
        for path, shrink in zip(group.paths, shrinks, strict=True):
            problem = replace(self.context.problem(at(block, path), moments, factor), shrink=shrink)
            solution = self.guard.solve(f"layer_{index}.{path}", problem, solver)
            give_back()
            self.context.note(f"layer_{index}.{path}", problem, solution)
            store(at(block, path), solution)

    def _without_blocks(self) -> None:
        context, blocks = self.context, self.stack.blocks
        count = count_blocks(len(blocks), context.pattern.sparsity)
        seed = context.options.seed if context.options.method == "random" else None
        self.gone = choose_blocks(context.flow, blocks, count, seed)
        kept = [index for index in range(len(blocks)) if index not in self.gone]
        for index, following in zip(kept, [*kept[1:], len(blocks)], strict=True):
            context.flow.enter(index, blocks[index], self.anatomies[index])
            for gap in range(index + 1, following):
                context.flow.cross(gap, blocks[gap])
            if following > index + 1 and context.chained:
                fit_before_gap(context, index, blocks[index], self.anatomies[index])
            self.drift.append(context.flow.leave())
            self.progress(STEP, following, len(blocks))
        drop_blocks(context.model, self.stack, self.gone)

    def _result(self, before: tuple[int, int], seconds: float) -> PruningResult:
        context, after = self.context, self.context.flow.resident.counts()
        maps = tuple(context.maps)
        numel = sum(m.shape[0] * m.shape[1] for m in maps)
        zeros = sum(m.sparsity * m.shape[0] * m.shape[1] for m in maps)
        return PruningResult(
            method=context.options.method,
            pattern=str(context.options.pattern),
            sparsity=len(self.gone) / len(self.stack.blocks) if self.gone else zeros / max(numel, 1),
            n_calibration_tokens=context.flow.n_tokens,
            maps=maps,
            drift=tuple(self.drift),
            n_parameters=(before[0], after[0]),
            n_nonzero=(before[1], after[1]),
            seconds=seconds,
            blocks_gone=tuple(self.gone),
        )
