"""How much memory a pruning takes beside the model: a forecast instead of a crash."""

from __future__ import annotations

from typing import Any

from torch import nn

from cohomcli.errors import AnalysisIncomplete
from cohomcli.models.layout import Stack
from cohomcli.models.memory import available_bytes, forecast, gigabytes
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.parts import Anatomy, anatomy_of, at
from cohomcli.pruning.slicing import matrix

FLOAT = 4
_SOLVING = ("sparsegpt", "admm", "chain")  # methods that hold an inverse beside the Gram
_BLAS = 32 * 2**20  # what OpenBLAS keeps for a thread that has inverted a matrix
_MATRICES = {"mlp": 6, "heads": 6, "blocks": 6, "rank": 7}  # (in, in) float32 of a solution in float64


def forecast_bytes(stack: Stack, tokens: int, options: PruneOptions) -> int:
    """Bytes beside what is in memory at the peak of one map: its Gram and what is solved with it, (in, in); four
    matrices (out, in); three buffers of its width for the `tokens` of one batch; the memory of the linear algebra; and
    the block, where it is to be read.

    The numbers of matrices are those that `python -m benchmarks.pruning_memory` measures at widths of 256 to 768.
    """
    worst, inverts = 0, False
    for block in stack.blocks:
        anatomy = anatomy_of(block)
        for path in anatomy.maps:
            out, width = matrix(at(block, path)).shape
            matrices = _matrices(anatomy, path, options)
            inverts |= matrices > 1
            held = matrices * width**2 + 4 * out * width + 3 * tokens * max(out, width)
            worst = max(worst, FLOAT * held)
        if anatomy.experts and options.pattern.kind == "experts":  # those that stay are copied
            worst = max(worst, FLOAT * sum(p.numel() for p in at(block, anatomy.experts).parameters()))
    return worst + (_BLAS if inverts else 0) + _still_to_come(stack)


def evaluation_bytes(config: Any, rows: int, length: int) -> int:
    """Bytes of a forward pass over `rows` sequences of `length` tokens with a loss: activations, and logits in three
    copies.
    """
    needs = forecast(config, 0, length, head=False)
    return rows * length * (needs.per_token + needs.logits)


def exactness_bytes(config: Any, n_blocks: int, rows: int, length: int) -> int:
    """Bytes of a pass without the head that sums the second moments of what every block writes, (d, d) float64 each."""
    width = config.get_text_config().hidden_size
    moments: int = 2 * FLOAT * n_blocks * width**2
    return moments + rows * length * forecast(config, 0, length, head=False).per_token


def _matrices(anatomy: Anatomy, path: str, options: PruneOptions) -> int:
    """How many matrices (in, in) the solution of the map at `path` takes."""
    kind = options.pattern.kind
    solved = {"mlp": (anatomy.reader,), "heads": anatomy.groups[1].paths, "blocks": (anatomy.reader,), "experts": ()}
    if path not in solved.get(kind, anatomy.maps):
        return 0
    if kind in _MATRICES:
        return _MATRICES[kind] if options.method not in ("wanda", "flap", "magnitude", "random", "influence") else 1
    return 2 if options.method in _SOLVING else 1


def _still_to_come(stack: Stack) -> int:
    """Float32 bytes of the largest block that is not in memory yet; 0 when all are."""
    blocks = ([p.numel() for p in block.parameters() if p.is_meta] for block in stack.blocks)
    return FLOAT * max(sum(sizes) for sizes in blocks)


def refuse_if_too_big(model: nn.Module, needed: int) -> None:
    """Refuse to prune `model`, which is loaded, where the `needed` bytes beside it are not free.

    Raises:
        AnalysisIncomplete: they are not.
    """
    free = available_bytes()
    if needed > free:
        raise AnalysisIncomplete(
            f"pruning {type(model).__name__} needs about {gigabytes(needed)} beside the model and {gigabytes(free)} "
            "is free",
            "use a machine with more memory",
        )
