"""What the kinds of certificate share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cohomcli.verify.document import Context, Rejected, canonical
from cohomcli.verify.errors_of import NORMS, Truth, truths

NORM_WORDS = {"rel-l2": "relative L2 error", "max-abs": "largest absolute error", "kl": "mean KL divergence (nats)"}


@dataclass(frozen=True)
class Kind:
    """`statement(document)` is the sentence that the claim's numbers mean; `check(context)` raises `Rejected`.

    `keys` are the claim's, all of them; `status` what the sentence may call itself.
    """

    status: str
    keys: frozenset[str]
    statement: Callable[[Mapping[str, Any]], str]
    check: Callable[[Context], None]


def real(value: Any, what: str) -> float:
    """A finite JSON number.

    Raises:
        Rejected: anything else.
    """
    if type(value) not in (int, float) or not math.isfinite(value):
        raise Rejected(f"{what} is {value!r}, not a finite number")
    return float(value)


def agree(stated: Any, found: Any, what: str) -> None:
    """Compare a number of the claim with the one computed here.

    Raises:
        Rejected: they differ.
    """
    if type(stated) is not type(found) or stated != found:
        raise Rejected(f"{what} is stated as {stated!r} and found to be {found!r}")


def exceeds(error: float, epsilon: Any) -> None:
    """Check that the proved error is above the tolerance.

    Raises:
        Rejected: it is not.
    """
    if not error > real(epsilon, "epsilon") or epsilon < 0:
        raise Rejected(f"the proved error {error!r} is not above epsilon {epsilon!r}")


def input_id(document: Mapping[str, Any], prefix: str = "input") -> str:
    """The first 12 digits of a hash of all input tensors' hashes: names the input in a statement."""
    parts = sorted(f"{k}={v['sha256']}" for k, v in document["tensors"].items() if k.startswith(f"{prefix}:"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def subject(document: Mapping[str, Any]) -> str:
    """The model in a statement: its name, and the first 12 digits of a hash of its name, graph and weights."""
    model = document["model"]
    return f"{model['name']} ({hashlib.sha256(canonical(model).encode()).hexdigest()[:12]})"


def selected(context: Context, inputs: Mapping[str, NDArray[Any]]) -> list[Truth]:
    """The truths that a claim counts: its outputs, the entries of its masks, or its single entry.

    Raises:
        Rejected: an output, mask or entry that is not there, or enclosures that are not finite.
    """
    claim = context.claim
    names = claim["outputs"]
    if claim["norm"] not in NORMS or not isinstance(names, list) or len(set(names)) != len(names) or not names:
        raise Rejected("the norm or the outputs are not ones to choose from")
    if any(name not in context.graph.outputs for name in names):
        raise Rejected("an output that the model has not")
    values = context.outputs(inputs, names)
    counted = {name: mask.astype(bool) for name, mask in context.tensors("counted").items()}
    if claim["entry"] is not None:
        if claim["norm"] != "max-abs" or len(names) != 1 or counted:
            raise Rejected("a single entry is for the largest absolute error of one output")
        mask = np.zeros(values[names[0]].shape, dtype=bool)
        if type(claim["entry"]) is not int or not 0 <= claim["entry"] < mask.size:
            raise Rejected("there is no such entry")
        mask.reshape(-1)[claim["entry"]] = True
        counted = {names[0]: mask}
    if any(name not in values or mask.shape != values[name].shape for name, mask in counted.items()):
        raise Rejected("a mask that fits no output")
    found = truths(values, counted)
    if any(not math.isfinite(end) for truth in found for pair in truth.ends for end in pair):
        raise Rejected("an enclosure is not finite")
    return found


def stored_in(fmt: str) -> str:
    """How a format's numbers are meant: those of eight bits without a scale."""
    return f"{fmt} without a scale" if fmt in ("e4m3", "e5m2") else fmt


def where(claim: Mapping[str, Any]) -> str:
    """ "output 'logits'", or an entry of it."""
    names = ", ".join(repr(str(name)) for name in claim["outputs"])
    entry = "" if claim["entry"] is None else f"entry {claim['entry']} of "
    return f"{entry}output{'s' if len(claim['outputs']) > 1 else ''} {names}"
