"""What a circuit means for other commands: the weights that `cohom prune --protect` leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cohomcli.config import Config
from cohomcli.runs.circuits import CircuitFile, read_circuit_file

if TYPE_CHECKING:
    from cohomcli.models.spec import LoadedModel
    from cohomcli.pruning.options import PruneOptions


def protected(options: PruneOptions, loaded: LoadedModel, config: Config) -> PruneOptions:
    """`options` with the weights of the circuit of --protect kept, if there is one.

    Raises:
        InputRefused: no circuit there, one of another model, or heads that are not known here.
    """
    if config.pruning.protect is None:
        return options
    from cohomcli.models.layout import find_stacks
    from cohomcli.models.units import units_of_components
    from cohomcli.models.wiring import weights_of, wire
    from cohomcli.pruning.protect import kept_of

    circuit = _circuit(config)
    blocks = wire(loaded.model, find_stacks(loaded.model).stacks[0])
    units = units_of_components(list(circuit.components), circuit.heads_per_group)
    slices = weights_of(blocks, units)
    return replace(options, protect=kept_of((one.name, one.rows, one.columns) for one in slices))


def protection_notes(loaded: LoadedModel, config: Config) -> Iterator[str]:
    """What a reader must know of the circuit that was kept."""
    if config.pruning.protect is None:
        return
    circuit = _circuit(config)
    what = f"the circuit of {circuit.task} ({len(circuit.components)} components)"
    yield f"{what} was kept as it is; the rest met the sparsity of the whole"
    if circuit.weights_sha256 != loaded.info.weights_sha256:
        yield "the circuit was found in a model with other weights: what it keeps here was not measured"


def _circuit(config: Config) -> CircuitFile:
    return read_circuit_file(Path(str(config.pruning.protect)))
