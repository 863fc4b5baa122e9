"""The ball interpreter: rigorous enclosures of what a plain graph computes in real arithmetic at one input."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cohomcli.errors import AnalysisIncomplete, CohomError
from cohomcli.models.memory import available_bytes
from cohomcli.verify.arrays import Array, Undecided, Unsupported, balls, flint
from cohomcli.verify.graph import PlainGraph, Step, fill
from cohomcli.verify.ops_shape import getitem
from cohomcli.verify.table import find

Progress = Callable[[str, int, int], None]
BASE_BITS, BITS_PER_LAYER = 128, 28
TARGET_BITS = 80  # radius of an output relative to its tensor's largest entry
MOST_BITS = 1 << 14
_PRODUCTS = re.compile(r"aten\.(linear|addmm|mm|bmm|matmul|conv\w*|scaled_dot_product_attention)\b")
_PRODUCTS_PER_LAYER = 6  # of a transformer block: projections and attention
_WORKSPACE = 6 << 27  # at most, of one product: a chunk of columns, its slices and their products with the digits


def silent(step: str, done: int, total: int) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Enclosure:
    """Balls of the wanted slots at a working precision in bits; exact tensors stay exact doubles or integers."""

    values: dict[int, Array]
    precision: int


def start_precision(graph: PlainGraph) -> int:
    """128 + 28 bits per layer of six products: radii of transformer blocks grow by 14 to 27 bits per layer."""
    count = sum(bool(_PRODUCTS.match(step.op)) for step in graph.steps)
    return BASE_BITS + BITS_PER_LAYER * -(-count // _PRODUCTS_PER_LAYER)


def enclose(
    graph: PlainGraph,
    known: Mapping[int, Any],
    wanted: set[int],
    precision: int | None = None,
    progress: Progress = silent,
) -> Enclosure:
    """Enclosures of slots `wanted` from the values of held tensors and arguments (and cut slots) in `known`.

    Starts with `start_precision` and doubles it while a comparison is undecided, or a radius is above 2^-80 of the
    tensor's largest magnitude. With `precision` given, exactly one attempt is made with it.

    Raises:
        Unsupported: an operation without rigorous mathematics here, named.
        AnalysisIncomplete: not decided with 16384 bits, or there is not enough memory.
    """
    bits = precision or start_precision(graph)
    check_memory(graph, known, wanted, bits)
    while True:
        try:
            values = evaluate(graph, known, wanted, bits, progress)
            if precision is not None or all(_tight(value) for value in values.values()):
                return Enclosure(values, bits)
            reason = "the enclosures are too wide"
        except Undecided as error:
            reason = f"undecided: {error}"
        if precision is not None or bits * 2 > MOST_BITS:
            hint = "the input lies on a decision boundary, or the model is not finite there"
            raise AnalysisIncomplete(f"no enclosure with {bits} bits, {reason}", hint)
        bits *= 2


def evaluate(
    graph: PlainGraph, known: Mapping[int, Any], wanted: set[int], bits: int, progress: Progress = silent
) -> dict[int, Array]:
    """One evaluation with working precision `bits`.

    Raises:
        Undecided: a comparison needs more bits.
        Unsupported: as `enclose`.
    """
    steps = graph.needed(wanted, set(known))
    freed = _last_uses(steps, wanted)
    values: dict[int, Any] = dict(known)
    with flint().ctx.workprec(bits):
        for n, step in enumerate(steps):
            progress("enclose", n, len(steps))
            values[step.out] = run_step(step, values)
            for slot in freed[n]:
                values.pop(slot, None)
        progress("enclose", len(steps), max(len(steps), 1))
    return {slot: values[slot] for slot in wanted}


def run_step(step: Step, values: Mapping[int, Any]) -> Any:
    """The result of one operation on values by slot.

    Raises:
        Undecided, Unsupported: as `evaluate`.
    """
    function = getitem if step.op == "getitem" else find(step.op)
    try:
        result = function(*fill(step.args, values), **fill(step.kwargs, values))
    except (CohomError, Undecided):
        raise
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise Unsupported(f"{step.op} with arguments it is not known for ({str(error)[:120]})") from error
    if isinstance(result, np.ndarray) and step.shape is not None and result.shape != step.shape:
        raise Unsupported(f"{step.op} gave shape {result.shape}, the graph says {step.shape}")
    return result


def _last_uses(steps: tuple[Step, ...], wanted: set[int]) -> list[list[int]]:
    seen, freed = set(wanted), []
    for step in reversed(steps):
        touched = [slot for slot in dict.fromkeys((*step.reads, step.out)) if slot not in seen]
        seen.update(touched)
        freed.append(touched)
    return freed[::-1]


def _tight(value: Array) -> bool:
    """Whether all radii are small against the largest magnitude; false for anything not finite."""
    if value.dtype != object:
        return bool(np.isfinite(value).all())
    entries = value.ravel().tolist()
    if not all(entry.is_finite() for entry in entries):
        return False
    largest = max((entry.abs_upper() for entry in entries), default=flint().arb(0))
    bound = largest * flint().arb((1, -TARGET_BITS))
    return all(entry.rad() <= bound for entry in entries)


def as_balls(value: Array) -> Array:
    """Balls of any wanted value; exact ones get radius zero."""
    return balls(value)


# --- memory -----------------------------------------------------------------------------------------------------------


def forecast(graph: PlainGraph, known: Mapping[int, Any], wanted: set[int], bits: int) -> int:
    """Bytes an evaluation needs beside the weights: the most balls alive at a time, and one product's workspace."""
    steps = graph.needed(wanted, set(known))
    size = {step.out: int(np.prod(step.shape)) if step.shape is not None else 0 for step in steps}
    per_ball = 120 + 8 * -(-bits // 64)  # the Python object, its pointer, and the limbs
    alive = peak = 0
    for step, freed in zip(steps, _last_uses(steps, wanted), strict=True):
        alive += size[step.out]
        peak = max(peak, alive)
        alive -= sum(size.get(slot, 0) for slot in freed)
    largest = max((int(np.size(value)) for value in known.values()), default=0)
    return 2 * peak * per_ball + min(_WORKSPACE, 6 * 8 * largest)


def check_memory(graph: PlainGraph, known: Mapping[int, Any], wanted: set[int], bits: int) -> None:
    """Refuse what would not fit, before hours are spent.

    Raises:
        AnalysisIncomplete: the forecast is above the memory that is free.
    """
    needed, free = forecast(graph, known, wanted, bits), available_bytes()
    if needed > free:
        gigabytes = f"{needed / 2**30:.1f} GiB of balls, and {free / 2**30:.1f} GiB are free"
        raise AnalysisIncomplete(f"the enclosure would need about {gigabytes}", "use fewer tokens or a smaller model")
