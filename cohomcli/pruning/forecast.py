"""How much memory a pruning takes beside the model: a forecast instead of a crash."""

from __future__ import annotations

from torch import nn

from cohomcli.errors import AnalysisIncomplete
from cohomcli.models.layout import Stack
from cohomcli.models.memory import available_bytes, gigabytes
from cohomcli.pruning.parts import anatomy_of, at
from cohomcli.pruning.slicing import matrix

FLOAT, DOUBLE = 4, 8


def forecast_bytes(stack: Stack, tokens: int) -> int:
    """Bytes beside what is in memory at the peak of one map: its Gram (in, in) in float64 and three times in float32,
    six matrices (out, in), and about eight buffers of its width for the `tokens` of one batch; and one block.
    """
    worst = 0
    for block in stack.blocks:
        for path in anatomy_of(block).maps:
            out, width = matrix(at(block, path)).shape
            gram = (DOUBLE + 3 * FLOAT) * width**2
            worst = max(worst, gram + 6 * FLOAT * out * width + 8 * FLOAT * tokens * max(out, width))
    return worst + _still_to_come(stack)


def _still_to_come(stack: Stack) -> int:
    """Float32 bytes of the largest block that is not in memory yet; 0 when all are."""
    blocks = ([p.numel() for p in block.parameters() if p.is_meta] for block in stack.blocks)
    return FLOAT * max(sum(sizes) for sizes in blocks)


def refuse_if_too_big(model: nn.Module, stack: Stack, tokens: int) -> int:
    """The forecast for `model`, which is loaded.

    Raises:
        AnalysisIncomplete: so much memory is not free.
    """
    needed, free = forecast_bytes(stack, tokens), available_bytes()
    if needed > free:
        raise AnalysisIncomplete(
            f"pruning {type(model).__name__} needs about {gigabytes(needed)} beside the model and {gigabytes(free)} "
            "is free",
            "use a machine with more memory",
        )
    return needed
