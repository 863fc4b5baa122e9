"""Whole blocks: the ones that turn their input least go, and the map before each gap is fitted to the state behind it.

Block influence 1 - cos(x_in, x_out) is that of ShortGPT (Men et al. 2024, arXiv:2403.03853), measured anew after every
removal. The fit is the chain target of `prune` carried across the gap: the square with the dense model, which runs all
blocks, commutes as well as one linear map can make it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import UsageError
from cohomcli.models.layout import Stack
from cohomcli.pruning.solve import Problem, invertible
from cohomcli.pruning.spd import invert
from cohomcli.pruning.stream import DENSE, Flow, run_block


def count_blocks(n_layer: int, sparsity: float) -> int:
    """How many blocks go; at least one, and the first always stays.

    Raises:
        UsageError: the share is less than one block, or leaves fewer than one.
    """
    count = int(n_layer * sparsity + 1e-9)
    if sparsity > 0 and not 0 < count < n_layer:
        raise UsageError(
            f"blocks:{sparsity:g} of {n_layer} blocks is {count}", f"give at least blocks:{1 / n_layer:.3g}"
        )
    return count


@torch.inference_mode()
def influences(flow: Flow, blocks: Sequence[nn.Module], numbers: Sequence[int]) -> list[float]:
    """1 - mean cos(x_in, x_out) over tokens of every block but the first, which is infinite; `numbers` are the blocks'
    places in the whole model.
    """
    totals, rows = [0.0] * len(blocks), 0
    for batch in range(flow.n_batches):
        x = flow.hidden(DENSE, batch)
        rows += x.shape[0] * x.shape[1]
        for place, (block, number) in enumerate(zip(blocks, numbers, strict=True)):
            y = run_block(block, x, flow.calls[number])
            totals[place] += float((1 - torch.cosine_similarity(x, y, dim=-1)).double().sum())
            x = y
    return [float("inf"), *(total / rows for total in totals[1:])]


def choose_blocks(flow: Flow, blocks: Sequence[nn.Module], count: int, seed: int | None = None) -> list[int]:
    """Numbers of the `count` blocks that go, in order; with a `seed` at random."""
    if seed is not None:
        order = torch.randperm(len(blocks) - 1, generator=torch.Generator().manual_seed(seed)) + 1
        return sorted(order[:count].tolist())
    left = list(range(len(blocks)))
    for _ in range(count):
        found = influences(flow, [blocks[number] for number in left], left)
        del left[found.index(min(found))]
    return sorted(set(range(len(blocks))) - set(left))


def refit(problem: Problem) -> Tensor:
    """The least-squares map (out, in) to the target, drawn to the old weight by lambda."""
    gram, target = invertible(problem)
    return target @ invert(gram)


def drop_blocks(model: Any, stack: Stack, gone: Sequence[int]) -> None:
    """Take the blocks out of `model` and tell its configuration, for a stock class that loads the result."""
    n_layer = len(stack.blocks)
    kept = [block for number, block in enumerate(stack.blocks) if number not in gone]
    owner = stack.path[-1]
    name = next(name for name, part in owner.named_children() if _holds(part, stack.blocks))
    setattr(owner, name, nn.ModuleList(kept))
    for number, block in enumerate(kept):
        attentions: list[Any] = [module for module in block.modules() if hasattr(module, "layer_idx")]
        for module in attentions:
            module.layer_idx = number
    config = model.config.get_text_config()
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == n_layer and key != "architectures":
            setattr(config, key, [entry for number, entry in enumerate(value) if number not in gone])
    config.num_hidden_layers = len(kept)


def _holds(part: nn.Module, blocks: Sequence[nn.Module]) -> bool:
    return isinstance(part, nn.ModuleList) and len(part) == len(blocks) and part[0] is blocks[0]
