"""Whole experts of a mixture: they go from every block, and the router chooses among those that are left.

An expert is worth what the block's output loses without it. `reap` estimates that by the mean size of what the expert
adds where it is chosen, gate times norm (Lasby et al. 2025, arXiv:2510.13999); `chain` measures it: the tokens that
chose the expert are routed anew among the others, and the squared distance of the outcome from the dense model's
state is what the expert's absence costs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused, UsageError
from cohomcli.pruning.context import Context
from cohomcli.pruning.parts import Anatomy, at
from cohomcli.pruning.results import PrunedMap

ROUNDS = 8  # at most so many times the costs are measured anew in a block
_COUNTS = ("num_local_experts", "num_experts")  # keys of configurations


@dataclass(frozen=True)
class Mixture:
    """A mixture's router and experts; `x` below is (tokens, d) of what the mixture reads."""

    router: Any
    experts: Any

    @property
    def count(self) -> int:
        """How many experts there are."""
        return int(self.router.weight.shape[0])

    def route(self, x: Tensor, alive: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Gates and numbers of the experts that every token chooses among `alive`, (tokens, k) each."""
        router = copy.copy(self.router)  # the class knows how to route; only its matrix is another
        held = self.router._parameters.items()
        router._parameters = {name: None if p is None else p[list(alive)] for name, p in held}
        router.num_experts = len(alive)
        _, gates, chosen = router(x)
        return gates, torch.tensor(alive, device=x.device)[chosen]

    def answer(self, expert: int, x: Tensor) -> Tensor:
        """What one expert makes of `x`, (tokens, d), before the gate."""
        chosen = torch.full((len(x), 1), expert, device=x.device)
        return self.answers(x, torch.ones_like(chosen, dtype=x.dtype), chosen)

    def answers(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """What the experts that `route` chose add together, (tokens, d)."""
        found: Tensor = self.experts(x, chosen, gates)
        return found

    def keep(self, alive: Sequence[int]) -> None:
        """Forget all experts but `alive`."""
        for module in (self.router, self.experts):
            module.num_experts = len(alive)
            if isinstance(module, nn.Linear):
                module.out_features = len(alive)
            for name, parameter in list(module.named_parameters()):
                kept = parameter.detach()[list(alive)].clone()
                setattr(module, name, nn.Parameter(kept, requires_grad=False))


def mixture_of(block: nn.Module, path: str) -> Mixture:
    """The mixture at `path` of `block`.

    Raises:
        InputRefused: it is not a router before experts in stacked tensors, with nothing else in either.
    """
    whole = at(block, path)
    experts: Any = whole.experts
    router: Any = getattr(whole, "gate", None) or getattr(whole, "router", None) or nn.Module()
    counts = {len(p) if p.dim() else 0 for p in (*router.parameters(), *experts.parameters())}
    beside = (*router.buffers(), *experts.buffers(), *router.children())
    if len(counts) != 1 or beside or not hasattr(router, "top_k") or not hasattr(router, "weight"):
        raise InputRefused(
            f"the experts of {type(whole).__name__} cannot be pruned yet",
            "those of Mixtral, Qwen, OLMoE, Granite, Phi and gpt-oss can",
        )
    return Mixture(router, experts)


def count_experts(mixture: Mixture, sparsity: float) -> int:
    """How many experts go: at least one, and a token must still find as many as it asks for.

    Raises:
        UsageError: less than one, or too many.
    """
    count, total = int(mixture.count * sparsity + 1e-9), mixture.count
    if count == 0 and sparsity > 0:
        raise UsageError(
            f"experts:{sparsity:g} of {total} experts is less than one", f"give at least experts:{1 / total:.3g}"
        )
    if total - count < mixture.router.top_k:
        raise UsageError(
            f"experts:{sparsity:g} leaves {total - count} experts, and every token asks for {mixture.router.top_k}",
            "choose a lower sparsity",
        )
    return count


def prune_experts(context: Context, index: int, block: nn.Module, anatomy: Anatomy) -> None:
    """Take experts from the mixture of a block; one that has an MLP as other models do is left alone."""
    if anatomy.experts is None:
        return
    context.flow.gather(anatomy.mlp)
    mixture = mixture_of(block, anatomy.experts)
    count = count_experts(mixture, context.pattern.sparsity)
    costs = {"chain": _measured, "reap": _estimated, "magnitude": _sizes, "random": _drawn}[context.options.method]
    alive = list(range(mixture.count))
    rounds = min(count, ROUNDS) if context.options.method == "chain" else min(count, 1)
    for done in range(rounds):
        leaving = count * (done + 1) // rounds - count * done // rounds
        order = torch.tensor(costs(context, mixture, alive)).argsort(stable=True).tolist()
        gone = set(order[:leaving])
        alive = [expert for place, expert in enumerate(alive) if place not in gone]
    error = _error(context, mixture, alive)
    size = sum(p.numel() for p in mixture.experts.parameters()) // mixture.count
    name = f"layer_{index}.{anatomy.experts}.experts"
    shape = (mixture.count, size)
    context.maps.append(PrunedMap(name, shape, count / mixture.count, 0.0, error))
    mixture.keep(alive)


def note_experts(model: Any, blocks: Iterable[nn.Module], anatomies: Iterable[Anatomy]) -> None:
    """Tell the configuration, for a stock class that loads the result, and all modules that remember the number; all
    `blocks` are done.
    """
    config = model.config.get_text_config()
    pairs = zip(blocks, anatomies, strict=True)
    left = next(mixture_of(block, one.experts).count for block, one in pairs if one.experts)
    setattr(config, next(key for key in _COUNTS if getattr(config, key, None) is not None), left)
    for module in model.modules():
        if hasattr(module, "num_experts"):
            module.num_experts = left


def _batches(context: Context) -> Iterator[tuple[Tensor, Tensor | None]]:
    """`Context.pairs` of the block's mixture over all batches."""
    return context.pairs(context.flow.anatomy.mlp, range(context.flow.n_batches))


@torch.inference_mode()
def _measured(context: Context, mixture: Mixture, alive: Sequence[int]) -> list[float]:
    """By how much |goal - output|^2 over all tokens grows when one of `alive` goes."""
    costs = torch.zeros(len(alive), dtype=torch.float64)
    for x, goal in _batches(context):
        assert goal is not None  # chain aims at the dense state
        gates, chosen = mixture.route(x, alive)
        now = (goal - mixture.answers(x, gates, chosen)).double().pow(2).sum(1)
        for place, expert in enumerate(alive):
            asked = (chosen == expert).any(1)  # nobody else notices
            if bool(asked.any()):
                others = [other for other in alive if other != expert]
                without = mixture.answers(x[asked], *mixture.route(x[asked], others))
                costs[place] += ((goal[asked] - without).double().pow(2).sum() - now[asked].sum()).item()
    found: list[float] = costs.tolist()
    return found


@torch.inference_mode()
def _estimated(context: Context, mixture: Mixture, alive: Sequence[int]) -> list[float]:
    """Mean of gate times norm of what an expert adds, over the tokens that chose it; 0 for one that none chose."""
    sums, counts = torch.zeros(mixture.count, dtype=torch.float64), torch.zeros(mixture.count, dtype=torch.float64)
    for x, _ in _batches(context):
        gates, chosen = mixture.route(x, alive)
        for expert in alive:
            tokens, places = (chosen == expert).nonzero(as_tuple=True)
            if len(tokens):
                norms = mixture.answer(expert, x[tokens]).norm(dim=1)
                sums[expert] += float((gates[tokens, places] * norms).double().sum())
                counts[expert] += len(tokens)
    found: list[float] = (sums / counts.clamp_min(1)).tolist()
    return found


def _sizes(context: Context, mixture: Mixture, alive: Sequence[int]) -> list[float]:
    """The squared norm of an expert's weights."""
    total: Tensor = sum(p.detach().double().pow(2).flatten(1).sum(1) for p in mixture.experts.parameters())  # type: ignore[assignment]
    found: list[float] = total.tolist()
    return found


def _drawn(context: Context, mixture: Mixture, alive: Sequence[int]) -> list[float]:
    generator = torch.Generator().manual_seed(context.options.seed + len(context.maps))
    found: list[float] = torch.rand(mixture.count, generator=generator).tolist()
    return found


@torch.inference_mode()
def _error(context: Context, mixture: Mixture, alive: Sequence[int]) -> float:
    """E|y - y'|^2 / E|y|^2 of what the experts add on the pruned stream, all of them against `alive`."""
    lost = total = 0.0
    for x, _ in _batches(context):
        y, left = (mixture.answers(x, *mixture.route(x, some)) for some in (range(mixture.count), alive))
        lost += float((y - left).double().pow(2).sum())
        total += float(y.double().pow(2).sum())
    return lost / max(total, 1e-300)
