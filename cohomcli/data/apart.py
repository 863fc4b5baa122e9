"""The few texts of a data set that are kept apart for evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from cohomcli.data.draw import sha256_of
from cohomcli.data.spec import TextSample
from cohomcli.errors import InputRefused


def keep_apart(sample: TextSample, fraction: float) -> tuple[TextSample, tuple[str, ...]]:
    """The sample without about `fraction` of its texts, and those: which, the hash of a text alone decides.

    Raises:
        InputRefused: there are too few texts for both parts.
    """
    apart = [_share(text) < fraction for text in sample.texts]
    kept = [text for text, out in zip(sample.texts, apart, strict=True) if not out]
    held = [text for text, out in zip(sample.texts, apart, strict=True) if out]
    if not kept or not held:
        raise InputRefused(
            f"{sample.source} holds {len(sample.texts)} distinct texts: too few to keep some apart for evaluation",
            "give more texts, a larger training.eval_fraction, or an --eval-split",
        )
    return replace(sample, texts=tuple(kept), sha256=sha256_of(kept)), tuple(held)


def _share(text: str) -> float:
    """A number in [0, 1) from the text's SHA-256; other bytes of it decide calibration or held-out."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[8:16], "big") / 2**64
