"""A certificate that encloses selected entries of an output at one input: the plainest statement the checker takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cohomcli.errors import UsageError
from cohomcli.precision.capture import Captured
from cohomcli.precision.prove.lowering import as_array, known_values, named_inputs
from cohomcli.precision.prove.package import Package, Written
from cohomcli.progress import Progress, silent
from cohomcli.verify.arrays import balls, float_down, float_up
from cohomcli.verify.enclose import enclose


def write_enclosure(
    captured: Captured,
    inputs: Any,
    place: tuple[str, Sequence[int]],
    package: Package,
    progress: Progress = silent,
) -> Written | None:
    """Enclose entries of an output, `place` = (output's name, flat indices), between the nearest doubles outwards.

    Raises:
        UsageError: no such output or entry.
        AnalysisIncomplete: as `enclose`.
    """
    name, entries = place
    graph = package.graph
    if name not in graph.outputs:
        raise UsageError(f"the model has no output {name!r}", f"its outputs: {', '.join(graph.outputs)}")
    slot = graph.outputs[name]
    found = enclose(graph, known_values(captured, inputs), {slot}, progress=progress)
    flat = balls(found.values[slot]).ravel()
    if any(not 0 <= i < len(flat) for i in entries):
        raise UsageError(f"output {name!r} has {len(flat)} entries", "give indices below that")
    claim = {
        "output": name,
        "entries": list(entries),
        "lower": [float_down(flat[i]).hex() for i in entries],
        "upper": [float_up(flat[i]).hex() for i in entries],
    }
    tensors = {f"input:{key}": as_array(value) for key, value in named_inputs(captured, inputs).items()}
    return package.write("enclosure", "enclosure", claim, tensors, found.precision)
