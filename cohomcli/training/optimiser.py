"""AdamW that does not shrink what the next map reads, and learning rates that follow spectral pages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from cohomcli.errors import UsageError
from cohomcli.models.maps import ConsecutiveMaps, consecutive_maps
from cohomcli.training.language import decay_groups
from cohomcli.training.options import TrainOptions

_NEGLIGIBLE = 1e-3  # singular directions below this share of the largest are noise of the measurement


@dataclass
class _Sequence:
    """Maps A (m, n) then B (k, m); `left` (k, r) and `right` (n, r) are the frame that coordinates are measured in.

    `first` is A, or A^T when `transposed`; `second` gives B as it is now.
    """

    first: nn.Parameter
    second: Callable[[], Tensor]
    transposed: bool = False
    left: Tensor | None = None
    right: Tensor | None = None
    age: int = 0

    @property
    def A(self) -> Tensor:
        """The first map (m, n), a view of the parameter."""
        weight = self.first.detach()
        return weight.T if self.transposed else weight

    @property
    def B(self) -> Tensor:
        """The second map (k, m)."""
        return self.second().detach()


class ExactSequenceOptimizer(torch.optim.AdamW):
    """AdamW whose step on A never lowers the coordinates of the measured image that the next map B reads.

    The read image is X = B A G^(1/2), G = E[x x^T] measured by `observe`. With the top singular frame (u_i, v_i) of X,
    the coordinates s_i = u_i^T X v_i are linear in A: a step D changes them by u_i^T B D G^(1/2) v_i. After AdamW's
    step the smallest correction (Frobenius norm) is added that makes every negative change zero and leaves the others
    as they are. So s_i never falls, and by von Neumann's trace inequality the Ky Fan r-norm of X, its r largest
    singular values together, is not lower after the step than before it, for B and G as measured, whenever the frame is
    fresh.

    Without `register_sequence`, or with `preserve=False`, a step is AdamW's bit for bit.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        *,
        preserve: bool = True,
        rank: int = 16,
        refresh: int = 10,
        decay: float = 0.9,
        **adamw: Any,
    ) -> None:
        """`rank` singular directions per sequence, whose frame is recomputed every `refresh` steps.

        `decay` is that of the running second moment; `adamw` goes to torch.optim.AdamW (betas, eps, weight_decay).

        Raises:
            UsageError: a rank or refresh below 1, or a decay outside [0, 1).
        """
        super().__init__(params, lr=lr, **adamw)
        if rank < 1 or refresh < 1 or not 0 <= decay < 1:
            raise UsageError(f"rank {rank}, refresh {refresh}, decay {decay} make no sense", "1, 1 and [0, 1) at least")
        self.preserve, self.rank, self.refresh, self.decay = preserve, rank, refresh, decay
        self._sequences: list[_Sequence] = []
        self._moments: dict[int, Tensor] = {}

    def register_sequence(self, first: nn.Parameter, second: nn.Parameter) -> None:
        """Guard the image of `first` (m, n) that `second` (k, m) reads.

        Raises:
            UsageError: they do not follow each other, or `first` is not one of the optimiser's parameters.
        """
        if first.dim() != 2 or second.dim() != 2 or second.shape[1] != first.shape[0]:
            shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise UsageError(f"maps of shapes {shapes} do not follow each other", "give (m, n) and (k, m) weights")
        if not any(p is first for group in self.param_groups for p in group["params"]):
            raise UsageError("the first map is not a parameter of this optimiser", "pass it to the constructor")
        self._sequences.append(_Sequence(first, lambda: second))

    def watch(self, first: nn.Linear, second: nn.Linear) -> Any:
        """Register two linear layers and measure the inputs of the first in every training pass.

        Returns the handle of the hook; its `remove()` ends the measuring.
        """
        weight = cast(nn.Parameter, first.weight)
        self.register_sequence(weight, cast(nn.Parameter, second.weight))
        return self._measure(first, weight)

    def watch_maps(self, maps: ConsecutiveMaps) -> Any:
        """The same for what one block of a transformer writes and the next one reads; all readers count as one map."""

        def read() -> Tensor:
            return maps.pair(None).second

        weight = cast(nn.Parameter, maps.writer.weight)
        self._sequences.append(_Sequence(weight, read, transposed=type(maps.writer).__name__ == "Conv1D"))
        return self._measure(maps.writer, weight)

    def _measure(self, first: nn.Module, weight: nn.Parameter) -> Any:
        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if self.preserve and module.training:
                self.observe(weight, args[0])

        return first.register_forward_pre_hook(note)

    @torch.no_grad()
    def observe(self, first: nn.Parameter, inputs: Tensor) -> None:
        """Take `inputs` (..., n) of the map `first` into its running second moment; at most 4 n rows, evenly spaced."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).to(first.dtype)
        rows = rows[:: max(len(rows) // (4 * rows.shape[-1]), 1)]
        fresh = rows.T @ rows / max(len(rows), 1)
        old = self._moments.get(id(first))
        self._moments[id(first)] = fresh if old is None else self.decay * old + (1 - self.decay) * fresh

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """AdamW's step, then the correction of every registered sequence."""
        active = self._sequences if self.preserve else []
        with torch.no_grad():
            before = []
            for sequence in active:
                left, _ = self._frame(sequence)
                read = sequence.B.T @ left  # (m, r): B^T u_i, of the B that this step starts from
                before.append((sequence.A.clone(), read))
        loss = super().step(closure)
        with torch.no_grad():
            for sequence, (weight, read) in zip(active, before, strict=True):
                self._correct(sequence, weight, read)
        return loss

    def coordinates(self, index: int) -> Tensor:
        """s_i (r,) of sequence `index` in its current frame; for tests and logs."""
        sequence = self._sequences[index]
        left, right = self._frame(sequence)
        return torch.einsum("mr,mn,nr->r", sequence.B.T @ left, sequence.A, right)

    def _frame(self, sequence: _Sequence) -> tuple[Tensor, Tensor]:
        """u_i (k, r) and G^(1/2) v_i (n, r), recomputed every `refresh` steps."""
        if sequence.left is not None and sequence.right is not None and sequence.age % self.refresh:
            sequence.age += 1
            return sequence.left, sequence.right
        A, B = sequence.A.float(), sequence.B.float()
        moment = self._moments.get(id(sequence.first))
        root = _square_root(moment.float()) if moment is not None else None
        X = B @ A if root is None else B @ A @ root
        U, values, Vh = torch.linalg.svd(X, full_matrices=False)
        r = min(self.rank, int((values > _NEGLIGIBLE * values[0]).sum()))
        right = Vh[:r].T if root is None else root @ Vh[:r].T
        sequence.left, sequence.right = U[:, :r].to(sequence.first.dtype), right.to(sequence.first.dtype)
        sequence.age = 1
        return sequence.left, sequence.right

    def _correct(self, sequence: _Sequence, before: Tensor, read: Tensor) -> None:
        """Add the smallest change of A that lifts every negative change of s_i to zero and keeps the others.

        `before` is A before the step and `read` (m, r) are the B^T u_i.
        """
        right = cast(Tensor, sequence.right)
        change = torch.einsum("mr,mn,nr->r", read, sequence.A - before, right)
        lack = (-change).clamp_min(0.0)
        if not bool(lack.any()):
            return
        # Inner products of the rank-one gradients of s_i: the entrywise product of two Gram matrices of independent
        # vectors, so positive definite (Schur).
        gram = (read.T @ read) * (right.T @ right)
        amounts = torch.linalg.lstsq(gram.double().cpu(), lack.double().cpu().unsqueeze(-1)).solution[:, 0]
        sequence.A.add_((read * amounts.to(read)) @ right.T)

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state, with the measured moments and frames of the sequences in the order of registration."""
        state: dict[str, Any] = super().state_dict()
        state["sequences"] = [
            {"moment": self._moments.get(id(s.first)), "left": s.left, "right": s.right, "age": s.age}
            for s in self._sequences
        ]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore; the same sequences must have been registered in the same order.

        Raises:
            UsageError: another number of sequences.
        """
        saved = state_dict.get("sequences", [])
        if len(saved) != len(self._sequences):
            raise UsageError(
                f"the state has {len(saved)} sequences and {len(self._sequences)} are registered",
                "register the same sequences before loading",
            )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "sequences"})
        for sequence, entry in zip(self._sequences, saved, strict=True):
            sequence.left, sequence.right, sequence.age = entry["left"], entry["right"], entry["age"]
            if entry["moment"] is not None:
                self._moments[id(sequence.first)] = entry["moment"]


def exact_adamw(model: nn.Module, options: TrainOptions) -> ExactSequenceOptimizer:
    """The optimiser for a whole transformer: AdamW that guards what every block's MLP writes and the next one reads.

    Raises:
        UsageError: the model's consecutive maps are not known.
    """
    maps = consecutive_maps(model)
    if not maps:
        raise UsageError(f"the consecutive maps of {type(model).__name__} are not known here", "use --optimizer adamw")
    groups = decay_groups(model, options.weight_decay)
    optimizer = ExactSequenceOptimizer(groups, lr=options.learning_rate, betas=options.betas, eps=1e-8)
    for each in maps:
        optimizer.watch_maps(each)
    return optimizer


def _square_root(moment: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((moment + moment.T) / 2)
    root: Tensor = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    return root


@dataclass
class SpectralLearningRateScheduler:
    """Learning rates per level that wait for the levels below: ten times lower until these have converged.

    Level l has converged when the next page adds little to it: the mean over the last `window` steps of
    1 / (1 + ||L_(l+1) - L_l|| / ||L_l||) is above `threshold`. The last level counts as converged. Rates rise linearly
    over `warmup_steps`. With an `optimizer`, groups that have a key "level" get their level's rate.
    """

    base_lr: float = 1e-3
    num_levels: int = 3
    warmup_steps: int = 1000
    optimizer: torch.optim.Optimizer | None = None
    window: int = 100
    threshold: float = 0.95
    slow: float = 0.1
    scores: list[deque[float]] = field(init=False)

    def __post_init__(self) -> None:
        if self.num_levels < 1 or self.warmup_steps < 0 or self.window < 1:
            raise UsageError("num_levels and window are at least 1, warmup_steps at least 0", "correct them")
        # one score more than the window: convergence is judged only when the window is full and has moved once
        self.scores = [deque(maxlen=self.window + 1) for _ in range(self.num_levels)]

    @property
    def level_convergence(self) -> list[bool]:
        """Which levels have converged."""
        return [len(kept) > self.window and sum(list(kept)[1:]) / self.window > self.threshold for kept in self.scores]

    @torch.no_grad()
    def step(self, page_outputs: Sequence[Tensor], step: int) -> dict[int, float]:
        """Note the pages of one step, narrow to wide, and return (and set) every level's learning rate."""
        for level, kept in enumerate(self.scores):
            kept.append(_agreement(level, page_outputs))
        rates = {level: self.get_level_lr(level, step) for level in range(self.num_levels)}
        for group in self.optimizer.param_groups if self.optimizer is not None else ():
            if "level" in group:
                group["lr"] = rates[group["level"]]
        return rates

    def get_level_lr(self, level: int, step: int) -> float:
        """base_lr, warmed up, times `slow` for every lower level that has not converged."""
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        waiting = sum(not done for done in self.level_convergence[:level])
        return self.base_lr * warm * self.slow**waiting

    def state_dict(self) -> dict[str, Any]:
        """The scores, for resuming."""
        return {"scores": [list(kept) for kept in self.scores]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores of a scheduler with as many levels."""
        for kept, saved in zip(self.scores, state_dict["scores"], strict=True):
            kept.clear()
            kept.extend(saved)


def _agreement(level: int, pages: Sequence[Tensor]) -> float:
    if level >= len(pages) - 1:
        return 1.0
    size = pages[level].norm().clamp_min(torch.finfo(pages[level].dtype).tiny)
    return float(1.0 / (1.0 + (pages[level + 1] - pages[level]).norm() / size))
