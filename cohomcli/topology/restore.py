"""Undo the rounding of an engine that computes in float32: find the float64 edge length behind each of its values."""

from __future__ import annotations

import numpy as np

from cohomcli.topology.results import Array

BLOCK = 2**20
TABLE_BITS = 22


def restore_lengths(bars: Array, lengths: Array) -> Array:
    """`bars` with every finite value replaced by the smallest of `lengths` that rounds to it in float32.

    `lengths` are the float64 edge lengths in any order, `bars` any array of float32 values among their roundings
    (inf stays). Engines hand out float32 values, which cannot be matched back to the distances they came from; this
    undoes the rounding, and makes engines agree to the last bit. It reads the lengths in blocks and sorts only the
    values it looks for: a sorted copy of the lengths would take as much memory as they do.
    """
    rounded = bars.astype(np.float32)
    wanted = np.unique(rounded[np.isfinite(rounded)])
    if not len(wanted):
        return bars
    found = np.full(len(wanted), np.inf)
    # Non-negative float32 order like their bit patterns, so a table over the high bits rejects most lengths at once.
    bits = wanted.view(np.int32)
    first, last = int(bits[0]), int(bits[-1])
    shift = max(0, (last - first).bit_length() - TABLE_BITS)
    table = np.zeros(((last - first) >> shift) + 1, dtype=np.bool_)
    table[(bits - first) >> shift] = True
    for start in range(0, len(lengths), BLOCK):
        part = lengths[start : start + BLOCK]
        small = part.astype(np.float32)
        at = small.view(np.int32)
        inside = np.flatnonzero((at >= first) & (at <= last))
        inside = inside[table[(at[inside] - first) >> shift]]
        slot = np.searchsorted(wanted, small[inside])
        equal = wanted[slot] == small[inside]
        np.minimum.at(found, slot[equal], part[inside[equal]])
    exact = found[np.minimum(np.searchsorted(wanted, rounded), len(wanted) - 1)]
    return np.where(np.isfinite(rounded) & np.isfinite(exact), exact, bars)
