"""State-dict names and shapes, seen from the backbone of a model: what wraps it, what it holds, what heads it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

# Buffers older versions of a model stored and newer ones compute: causal masks, position counters, rotary tables.
_COMPUTED = re.compile(
    r"(^|\.)(attn|attention)\.(bias|masked_bias)$|rotary_emb\.|position_ids$|embeddings\.token_type_ids$"
)


@dataclass(frozen=True)
class Backbone:
    """The tensors of one transformer stack under their names inside the stack, and those beside it (`heads`).

    `wrapped` tells whether the stack was stored inside a model with a head, under its usual name (`transformer.`).
    `computed` are stored buffers that are not weights.
    """

    tensors: dict[str, Tensor]
    heads: dict[str, Tensor]
    computed: dict[str, Tensor]
    wrapped: bool

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a stack tensor, () when it is absent."""
        return tuple(self.tensors[name].shape) if name in self.tensors else ()

    def size(self, name: str, axis: int) -> int:
        """One length of a stack tensor, 0 when it is absent."""
        shape = self.shape(name)
        return shape[axis] if -len(shape) <= axis < len(shape) else 0

    def n_layer(self, stem: str) -> int:
        """How many blocks `stem.0`, `stem.1`, ... there are; 0 when a number is missing between two."""
        pattern = re.compile(rf"{re.escape(stem)}\.(\d+)\.")
        numbers = {int(match[1]) for name in self.tensors if (match := pattern.match(name))}
        return len(numbers) if numbers == set(range(len(numbers))) else 0

    def renamed(self, prefix: str) -> dict[str, Tensor]:
        """All weights under the names of a model with a head: the stack under `prefix`, heads beside it."""
        return {**{f"{prefix}{name}": value for name, value in self.tensors.items()}, **self.heads}


def find_backbone(tensors: Mapping[str, Tensor], marker: str, usual: str) -> Backbone | None:
    """The stack that holds a tensor called `marker`, under any prefix; None when there is none.

    `usual` is the stack's name inside its model with a head ("transformer."). Tensors outside the wrapper of the stack
    (a loss, a teacher) keep their names and stay among the heads.
    """
    found = [name.removesuffix(marker) for name in tensors if name == marker or name.endswith(f".{marker}")]
    if len(found) != 1:
        return None
    prefix = found[0]
    wrapped = f".{prefix}".endswith(f".{usual}")
    outer = prefix.removesuffix(usual) if wrapped else ""
    backbone = Backbone({}, {}, {}, wrapped)
    for name, value in tensors.items():
        if _COMPUTED.search(name):
            backbone.computed[name] = value
        elif name.startswith(prefix):
            backbone.tensors[name.removeprefix(prefix)] = value
        else:
            backbone.heads[name.removeprefix(outer)] = value
    return backbone
