"""`CircuitPreservationPruner`: prune a model, but not the circuit that a behaviour lives in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cohomcli.models.layout import find_stacks
from cohomcli.models.units import units_of_components
from cohomcli.models.wiring import weights_of, wire
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.pattern import parse_pattern
from cohomcli.pruning.protect import kept_of
from cohomcli.pruning.prune import prune
from cohomcli.pruning.results import PruningResult


@dataclass(frozen=True)
class CircuitPreservationPruner:
    """Sets the share `prune_ratio` of the decoder `model`'s maps to zero, all of it outside a circuit.

    The source's class of this name zeroed whole parameter tensors of small norm and preserved nothing. This one is
    `cohom prune --protect` in Python; `method` is one of its methods.
    """

    model: nn.Module
    prune_ratio: float = 0.5
    method: str = "chain"

    def prune(self, circuit: Iterable[str], batches: Sequence[dict[str, Tensor]]) -> PruningResult:
        """Prune in place around `circuit`, names of heads, MLPs, neurons or edges.

        `batches` are calibration inputs of one shape, `input_ids` and `attention_mask` (B, T), at least two.

        Raises:
            UsageError: the circuit is so large that the ratio cannot be met outside it.
            InputRefused: a name that is no component of this model, or a family that is not known.
            AnalysisIncomplete: calibration gives numbers that are not finite.
        """
        stack = find_stacks(self.model).stacks[0]
        blocks = wire(self.model, stack)
        units = units_of_components(list(circuit), blocks[0].n_heads // blocks[0].n_groups)
        kept = kept_of((one.name, one.rows, one.columns) for one in weights_of(blocks, units))
        options = PruneOptions(self.method, parse_pattern(str(self.prune_ratio)), protect=kept)
        return prune(self.model, stack, batches, options)
