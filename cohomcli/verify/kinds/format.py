"""The format obstruction: no number of a format is close enough, so no algorithm that stores its result in it is.

If dist(f_k(x), F) > epsilon for the set F of a format's numbers, then whatever computes y in F has |y - f_k(x)| >
epsilon. In relative L2 the distances of all entries count together: every y in F^n has ||y - f|| >= ||dist(f, F)||.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cohomcli.verify.document import Context, Rejected
from cohomcli.verify.errors_of import error_below
from cohomcli.verify.kinds.common import NORM_WORDS, Kind, agree, exceeds, input_id, selected, stored_in, subject, where
from cohomcli.verify.rounding import distance, storage_format


def statement(document: Mapping[str, Any]) -> str:
    """The sentence."""
    claim = document["claim"]
    return (
        f"{subject(document)} at the input {input_id(document)}: no algorithm whose {where(claim)} is stored in "
        f"{stored_in(claim['format'])} has a {NORM_WORDS[claim['norm']]} of {claim['epsilon']!r} or less there, "
        f"because already the nearest numbers of {claim['format']} err by at least {claim['error']!r}."
    )


def check(context: Context) -> None:
    """Enclose the outputs again and measure their distance to the format in rational arithmetic."""
    claim = context.claim
    target = storage_format(claim["format"])
    if claim["norm"] == "kl":
        raise Rejected("there is no format obstruction in this norm")
    found = selected(context, context.tensors("input"))
    error = error_below(claim["norm"], found, lambda truth: [distance(a, b, target) for a, b in truth.ends])
    agree(claim["error"], error, "the distance")
    exceeds(error, claim["epsilon"])


KEYS = frozenset({"format", "norm", "epsilon", "error", "outputs", "entry"})
KIND = Kind("proved", KEYS, statement, check)
