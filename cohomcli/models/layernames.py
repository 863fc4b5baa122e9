"""Names of a model's layers in forward order, and what `--layers` selects. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cohomcli.errors import UsageError
from cohomcli.models.spec import Site
from cohomcli.registry import did_you_mean

_PREFIXES = ("encoder.", "decoder.")
# The names of the topological-comparison source system, so that its configurations keep working.
_OTHER_SPELLINGS = ((re.compile(r"_attention$"), ".attention"), (re.compile(r"_(ffn|mlp)$"), ".mlp"))


@dataclass(frozen=True)
class StackNames:
    """What names a stack offers; `prefix` is "", "encoder." or "decoder."."""

    prefix: str
    n_layer: int
    has_final_norm: bool

    def names(self, sites: Iterable[Site]) -> Iterator[str]:
        """Every name at `sites`, in forward order. Embedding and final norm belong to the site `block`."""
        wanted = set(sites)
        if "block" in wanted:
            yield f"{self.prefix}embedding"
        for index in range(self.n_layer):
            yield from self.layer(index, wanted)
        if "block" in wanted and self.has_final_norm:
            yield f"{self.prefix}final_norm"

    def layer(self, index: int, sites: Iterable[Site]) -> Iterator[str]:
        """The names of block `index` at `sites`, in forward order."""
        for site in ("attention", "mlp", "block"):
            if site in sites:
                yield f"{self.prefix}layer_{index}" + ("" if site == "block" else f".{site}")


def select_layers(stacks: Sequence[StackNames], requested: Sequence[str], sites: Sequence[Site]) -> list[str]:
    """The layers to collect, in forward order; an empty request means all.

    A request is `all`, `embedding`, `final_norm`, `final` (the final norm, or the last block where there is none), a
    block (`layer_3`, `3`, `-1` for the last), a range (`0-5`), or one site (`layer_3.attention`). On an
    encoder-decoder a request without `encoder.` or `decoder.` selects in both.

    Raises:
        UsageError: an unknown name or site, or a block the model does not have.
    """
    for site in sites:
        if site not in ("block", "attention", "mlp"):
            raise UsageError(f"unknown site {site!r}", did_you_mean(site, ("block", "attention", "mlp")))
    if not sites:
        raise UsageError("no sites given", "use block, attention or mlp")
    chosen: set[str] = set()
    for request in requested or ("all",):
        chosen.update(_select_one(stacks, request.strip(), sites))
    everything = [name for stack in stacks for name in stack.names(("block", "attention", "mlp"))]
    return [name for name in everything if name in chosen]


def _select_one(stacks: Sequence[StackNames], request: str, sites: Sequence[Site]) -> list[str]:
    text = request
    for pattern, spelling in _OTHER_SPELLINGS:
        text = pattern.sub(spelling, text)
    prefix = next((prefix for prefix in _PREFIXES if text.startswith(prefix)), "")
    asked = [stack for stack in stacks if stack.prefix == prefix] if prefix else list(stacks)
    names = [name for stack in asked for name in _match(stack, text.removeprefix(prefix), sites)]
    if not names:
        known = [name for stack in stacks for name in stack.names(sites)]
        raise UsageError(f"unknown layer {request!r}", _hint(text, known, stacks))
    return names


def _match(stack: StackNames, text: str, sites: Sequence[Site]) -> list[str]:
    """What `text` (without prefix) means on one stack; empty when it means nothing there."""
    if text == "all":
        return list(stack.names(sites))
    if text == "final":
        text = "final_norm" if stack.has_final_norm else "-1"
    if text == "embedding" or (text == "final_norm" and stack.has_final_norm):
        return [stack.prefix + text]
    if found := re.fullmatch(r"(?:layer_)?(\d+)\.(attention|mlp)", text):
        site: Site = "attention" if found[2] == "attention" else "mlp"
        return list(stack.layer(int(found[1]), (site,))) if int(found[1]) < stack.n_layer else []
    if found := re.fullmatch(r"(\d+)-(\d+)", text):
        first, last = int(found[1]), int(found[2])
    elif found := re.fullmatch(r"(?:layer_)?(-?\d+)", text):
        first = last = int(found[1]) + (stack.n_layer if int(found[1]) < 0 else 0)
    else:
        return []
    if not 0 <= first <= last < stack.n_layer:
        return []
    return [name for index in range(first, last + 1) for name in stack.layer(index, sites)]


def _hint(text: str, known: list[str], stacks: Sequence[StackNames]) -> str:
    near = did_you_mean(text, known)
    if near.startswith("did you mean") and not any(character.isdigit() for character in text):
        return near
    blocks = " and ".join(f"{stack.prefix}layer_0 to {stack.prefix}layer_{stack.n_layer - 1}" for stack in stacks)
    ends = [name for name in known if name.endswith(("embedding", "final_norm"))]
    return f"the model has {', '.join([blocks, *ends])}"
