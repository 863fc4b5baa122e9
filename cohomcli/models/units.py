"""The units a circuit is made of, by name: attention heads, whole MLPs, single MLP neurons, and edges between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cohomcli.errors import InputRefused
from cohomcli.names import printable

UnitKind = Literal["head", "mlp", "neuron"]
_UNIT = re.compile(r"layer_(\d+)\.(?:(head|neuron)_(\d+)|(mlp))")
_PORT = re.compile(r"layer_(\d+)\.(?:head_(\d+)\.([qkv])|group_(\d+)\.([kv])|(mlp))")
INPUT, LOGITS, ARROW = "input", "logits", " -> "


@dataclass(frozen=True, order=True)
class Unit:
    """A head, an MLP or a neuron of block `layer`; `index` counts heads or neurons within the block."""

    layer: int
    kind: UnitKind
    index: int = 0

    @property
    def name(self) -> str:
        """`layer_0.head_3`, `layer_0.mlp` or `layer_0.neuron_12`."""
        return f"layer_{self.layer}.{self.kind}" + ("" if self.kind == "mlp" else f"_{self.index}")


def parse_unit(name: str) -> Unit:
    """The unit that `name` names.

    Raises:
        InputRefused: it names none.
    """
    match = _UNIT.fullmatch(name)
    if match is None:
        raise InputRefused(f"{printable(repr(name))} names no head, MLP or neuron", "write layer_0.head_3, layer_0.mlp")
    if match[4]:
        return Unit(int(match[1]), "mlp")
    return Unit(int(match[1]), "head" if match[2] == "head" else "neuron", int(match[3]))


def units_of_components(components: list[str], heads_per_group: int) -> list[Unit]:
    """The units that `components` (names of units, or edges `a -> b`) touch, each once, in order.

    An edge touches both its ends; the model's input and its logits are no units. A group of shared keys and values
    stands for the `heads_per_group` heads that read it.

    Raises:
        InputRefused: a name that is neither.
    """
    found: list[Unit] = []
    for component in components:
        source, arrow, target = component.partition(ARROW)
        if not arrow:
            found.append(parse_unit(component))
            continue
        found += [] if source == INPUT else [parse_unit(source)]
        found += _of_port(target, heads_per_group)
    return sorted(set(found))


def _of_port(name: str, heads_per_group: int) -> list[Unit]:
    if name == LOGITS:
        return []
    match = _PORT.fullmatch(name)
    if match is None:
        raise InputRefused(f"{printable(repr(name))} is no end of an edge", "write layer_1.head_0.q or layer_1.mlp")
    layer = int(match[1])
    if match[6]:
        return [Unit(layer, "mlp")]
    if match[4]:
        first = int(match[4]) * heads_per_group
        return [Unit(layer, "head", first + at) for at in range(heads_per_group)]
    return [Unit(layer, "head", int(match[2]))]
