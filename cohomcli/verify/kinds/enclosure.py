"""An enclosure: certain entries of an output lie between stated numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cohomcli.verify.arrays import balls, float_down, float_up
from cohomcli.verify.document import Context, Rejected
from cohomcli.verify.kinds.common import Kind, agree, input_id, subject


def statement(document: Mapping[str, Any]) -> str:
    """The sentence."""
    claim = document["claim"]
    pairs = "; ".join(
        f"[{float.fromhex(low)!r}, {float.fromhex(high)!r}]"
        for low, high in zip(claim["lower"], claim["upper"], strict=True)
    )
    return (
        f"{subject(document)} at the input {input_id(document)}: in real arithmetic the entries {claim['entries']} of "
        f"output {claim['output']!r} lie in {pairs}."
    )


def check(context: Context) -> None:
    """Evaluate again; the ends must be the nearest doubles outwards."""
    claim = context.claim
    if claim["output"] not in context.graph.outputs:
        raise Rejected("an output that the model has not")
    value = balls(context.outputs(context.tensors("input"), [claim["output"]])[claim["output"]]).ravel()
    if any(type(i) is not int or not 0 <= i < len(value) for i in claim["entries"]):
        raise Rejected("there is no such entry")
    agree(claim["lower"], [float_down(value[i]).hex() for i in claim["entries"]], "a lower end")
    agree(claim["upper"], [float_up(value[i]).hex() for i in claim["entries"]], "an upper end")


KIND = Kind("proved", frozenset({"output", "entries", "lower", "upper"}), statement, check)
