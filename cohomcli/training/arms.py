"""The arms of an ablation: what is added to the task's loss, all on one scale.

A regulariser's value has no unit in common with another's, so weights are shares of gradients: at weight w the term's
gradient at the start of training has w times the norm of the task's. An arm and the placebo of equal weight therefore
push equally hard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.models.layout import block_input, find_stacks, first_tensor
from cohomcli.registry import Registry
from cohomcli.training.compat import literal_exact_loss
from cohomcli.training.data import Batch, Task
from cohomcli.training.language import inputs_of, summed_loss, targets_in
from cohomcli.training.loop import Objective, Plain
from cohomcli.training.structure import Structural

Forward = tuple[Any, Tensor]


class Regulariser(Protocol):
    """A term beside the task's loss."""

    def forward(self, model: nn.Module, inputs: Batch, step: int | None) -> Forward:
        """Call the model; its outputs and the term, an unweighted scalar."""


@dataclass(frozen=True)
class Arm:
    """`build` makes the arm's term for a model and a seed; None trains on the task alone. `longer` arms get as many
    more steps as the cost of the structural losses would have bought.
    """

    name: str
    what: str
    build: Callable[[nn.Module, int], Regulariser] | None = None
    longer: bool = False


ARMS = Registry("arm")


def _arm(name: str, what: str) -> Callable[[Any], Any]:
    def register(build: Any) -> Any:
        ARMS.add(name, Arm(name, what, build))
        return build

    return register


ARMS.add("none", Arm("none", "the task's loss alone"))
ARMS.add(
    "compute", Arm("compute", "the task's loss alone, as many more steps as the structural losses cost", None, True)
)


class Weighted:
    """A regulariser as an objective of the loop: `factor` times its value, under the arm's name."""

    def __init__(self, name: str, regulariser: Regulariser, factor: float) -> None:
        self.name, self.regulariser, self.factor = name, regulariser, factor

    def forward(self, model: nn.Module, inputs: Batch, step: int | None = None) -> tuple[Any, Mapping[str, Tensor]]:
        """The outputs and the weighted term."""
        outputs, value = self.regulariser.forward(model, inputs, step)
        return outputs, {self.name: self.factor * value}


def objective_of(arm: Arm, weight: float | None, model: nn.Module, batch: Batch, task: Task, seed: int) -> Objective:
    """The arm's objective at `weight`, a share of the task's gradient on `batch` at the model's present weights.

    Raises:
        AnalysisIncomplete: the term has no gradient, or not a finite one, at the start.
        UsageError: an arm that needs maps on a model whose maps are not known.
    """
    if arm.build is None or weight is None:
        return Plain()
    regulariser = arm.build(model, seed)
    own, other = gradient_norms(regulariser, model, batch, task)
    if not 0 < own < float("inf"):
        raise AnalysisIncomplete(f"arm {arm.name!r} has no finite gradient at the start ({own})", "leave the arm out")
    return Weighted(arm.name, regulariser, weight * other / own)


def gradient_norms(regulariser: Regulariser, model: nn.Module, batch: Batch, task: Task) -> tuple[float, float]:
    """Norms over all weights of the gradients of the term and of the task's mean loss, from one pass."""
    model.train()
    outputs, value = regulariser.forward(model, inputs_of(batch), None)
    loss = summed_loss(outputs, batch["labels"], task) / max(targets_in(batch["labels"]), 1)
    weights = [p for p in model.parameters() if p.requires_grad]
    return _norm(value, weights), _norm(loss, weights)


def _norm(value: Tensor, weights: list[nn.Parameter]) -> float:
    gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    squares = [g.double().pow(2).sum() for g in gradients if g is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


@contextmanager
def block_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a forward pass leaves in the list what enters the first block and what each puts out, (B, T, d)."""
    stack = find_stacks(model).stacks[0]
    states: list[Tensor] = []

    def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[:] = [block_input(args, kwargs)]

    first = stack.blocks[0].register_forward_pre_hook(enters, with_kwargs=True)
    rest = [
        block.register_forward_hook(lambda module, args, output: states.append(first_tensor(output)))
        for block in stack.blocks
    ]
    try:
        yield states
    finally:
        for handle in (first, *rest):
            handle.remove()


def _real(inputs: Batch) -> Tensor:
    """(B, T) bool: tokens that are not padding."""
    return inputs["attention_mask"].bool()


class _Structure:
    """Our losses, summed as the objective sums them at equal weights."""

    def __init__(self, model: nn.Module, exact: float, spectral: float) -> None:
        self.structural = Structural(model, exact, spectral)

    def forward(self, model: nn.Module, inputs: Batch, step: int | None) -> Forward:
        outputs, terms = self.structural.forward(model, inputs, step)
        return outputs, torch.stack(list(terms.values())).sum()


@_arm("ours", "the exact-sequence and the spectral-sequence loss")
def _ours(model: nn.Module, seed: int) -> Regulariser:
    return _Structure(model, 1.0, 1.0)


@_arm("exact", "the exact-sequence loss alone")
def _exact(model: nn.Module, seed: int) -> Regulariser:
    return _Structure(model, 1.0, 0.0)


@_arm("spectral", "the spectral-sequence loss alone")
def _spectral(model: nn.Module, seed: int) -> Regulariser:
    return _Structure(model, 0.0, 1.0)


class _OnStates:
    """A term of the states of all blocks."""

    def __init__(self, term: Callable[[list[Tensor], Tensor], Tensor]) -> None:
        self.term = term

    def forward(self, model: nn.Module, inputs: Batch, step: int | None) -> Forward:
        with block_states(model) as states:
            outputs = model(**inputs)
            seen = list(states)
        return outputs, self.term(seen, _real(inputs))


@_arm("literal", "the published loss, ||H_(i+1) H_i^T|| of neighbouring layers' activations")
def _literal(model: nn.Module, seed: int) -> Regulariser:
    def term(states: list[Tensor], real: Tensor) -> Tensor:
        seen = [state * real.unsqueeze(-1) for state in states]
        return literal_exact_loss(seen, states[0].new_zeros(()), 1.0)

    return _OnStates(term)


@_arm("placebo", "states drawn to fixed random directions, with a gradient of equal size")
def _placebo(model: nn.Module, seed: int) -> Regulariser:
    width = int(model.config.get_text_config().hidden_size)  # type: ignore[operator,union-attr]
    drawn = torch.randn(
        len(find_stacks(model).stacks[0].blocks) + 1, width, generator=torch.Generator().manual_seed(seed)
    )
    directions = nn.functional.normalize(drawn, dim=-1)

    def term(states: list[Tensor], real: Tensor) -> Tensor:
        apart = [
            1 - nn.functional.cosine_similarity(state[real], direction.to(state), dim=-1).mean()
            for state, direction in zip(states[1:], directions[1:], strict=True)
        ]
        return torch.stack(apart).mean()

    return _OnStates(term)


@_arm("vicreg", "variance and covariance of the last states (VICReg without its invariance term: there is one view)")
def _vicreg(model: nn.Module, seed: int) -> Regulariser:
    return _OnStates(lambda states, real: vicreg(states[-1][real]))


def vicreg(x: Tensor) -> Tensor:
    """25 mean_j max(0, 1 - std_j) + 1/d sum_(i != j) C_ij^2 of rows `x` (n, d) (Bardes, Ponce, LeCun 2022,
    arXiv:2105.04906, eq. 1 to 5, with their weights 25 and 1).
    """
    centred = x.float() - x.float().mean(0)
    n, d = centred.shape
    C = centred.T @ centred / max(n - 1, 1)
    spread = torch.relu(1 - (torch.diagonal(C) + 1e-4).sqrt()).mean()
    off = (C.pow(2).sum() - torch.diagonal(C).pow(2).sum()) / d
    return 25 * spread + off


@_arm("orthogonal", "||W^T W - 1||^2 over the matrices of the blocks")
def _orthogonal(model: nn.Module, seed: int) -> Regulariser:
    blocks = find_stacks(model).stacks[0].blocks
    matrices = [p for block in blocks for p in block.parameters() if p.dim() == 2]
    if not matrices:
        raise UsageError("arm 'orthogonal' finds no matrices in the blocks", "leave it out of ablation.arms")
    return _OnWeights(matrices)


class _OnWeights:
    """Mean over matrices of ||W^T W - 1||_F^2 / n, n their shorter side (Brock et al. 2017, arXiv:1609.07093, 3.4)."""

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        self.matrices = matrices

    def forward(self, model: nn.Module, inputs: Batch, step: int | None) -> Forward:
        return model(**inputs), torch.stack([soft_orthogonality(W) for W in self.matrices]).mean()


def soft_orthogonality(W: Tensor) -> Tensor:
    """||W^T W - 1||_F^2 / n for `W` (m, n), n <= m; a wide matrix is transposed."""
    tall = W if W.shape[0] >= W.shape[1] else W.T
    n = tall.shape[1]
    apart: Tensor = (tall.T @ tall - torch.eye(n, dtype=W.dtype, device=W.device)).pow(2).sum() / n
    return apart
