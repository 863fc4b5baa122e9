"""The witness obstruction: a recorded low-precision run of this program is farther from the truth than epsilon.

The deviation of the recorded outputs from the true ones is proved. That the outputs are what the named semantics gives
is a matter of running it again: the certificate has them with their hash, and says what ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cohomcli.verify.document import Context, Rejected
from cohomcli.verify.errors_of import divergence_below, error_below, gaps_to
from cohomcli.verify.kinds.common import NORM_WORDS, Kind, agree, exceeds, input_id, selected, subject, where

SEMANTICS = {
    "store": "every stored tensor rounded once, those of eight bits with a power-of-two scale, computed in float32",
    "native": "PyTorch's own CPU kernels after conversion of the module",
}


def statement(document: Mapping[str, Any]) -> str:
    """The sentence."""
    claim = document["claim"]
    error = "not finite" if claim["error"] is None else f"at least {claim['error']!r}"
    return (
        f"{subject(document)} at the input {input_id(document)}, run in {claim['plan']} (semantics "
        f"{claim['semantics']!r}: {SEMANTICS[claim['semantics']]}): the recorded {where(claim)} "
        f"({input_id(document, 'recorded')}) has a {NORM_WORDS[claim['norm']]} that is {error}, which is more than "
        f"{claim['epsilon']!r}."
    )


def check(context: Context) -> None:
    """Enclose the outputs again and compare with the recorded ones."""
    claim = context.claim
    if claim["semantics"] not in SEMANTICS:
        raise Rejected("unknown semantics")
    recorded = context.tensors("recorded")
    if set(recorded) != set(claim["outputs"]):
        raise Rejected("the recorded outputs are not those of the claim")
    found = selected(context, context.tensors("input"))
    if any(recorded[truth.name].shape != truth.balls.shape for truth in found):
        raise Rejected("a recorded output has another shape than the model's")
    if not all(bool(np.isfinite(recorded[truth.name][truth.counted]).all()) for truth in found):
        agree(claim["error"], None, "the error")
        return
    if claim["norm"] == "kl":
        if len(found) != 1:
            raise Rejected("the divergence is of one output")
        error = divergence_below(found[0], recorded[found[0].name], context.precision)
    else:
        error = error_below(claim["norm"], found, lambda truth: gaps_to(recorded[truth.name], truth))
    agree(claim["error"], error, "the error")
    exceeds(error, claim["epsilon"])


KEYS = frozenset({"plan", "semantics", "norm", "epsilon", "error", "outputs", "entry"})
KIND = Kind("proved", KEYS, statement, check)
