"""How much one model file may ask of this machine before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Caps that honest files stay far below; a file that exceeds one is refused with a line that names it.

    `max_entries`: members of a zip archive (a 1,000-layer model has about 10,000).
    `max_inflation`: uncompressed over compressed bytes of a deflated member larger than `free_inflation` bytes.
    `max_inflated`: uncompressed bytes of all deflated members together (torch stores, it never deflates).
    `max_opcodes`: pickle instructions of one file (a pickled GPT-2 has about 20,000).
    `max_pickle`: bytes of a pickle program inside an archive; its tensors lie beside it, so it is small.
    `max_text`: bytes of one string inside a pickle. `max_nesting`: open marks of a pickle, and levels that are walked.
    `max_names`: tensors, modules or mapping entries collected from one file.
    `max_json`: bytes of one JSON document inside an archive.
    `free_view`: bytes that overlapping views may claim beyond what their storage holds.
    """

    max_entries: int = 200_000
    max_inflation: int = 200
    free_inflation: int = 64 * MIB
    max_inflated: int = 8 * 1024 * MIB
    max_opcodes: int = 4_000_000
    max_pickle: int = 512 * MIB
    max_text: int = 64 * MIB
    max_nesting: int = 1_000
    max_names: int = 200_000
    max_json: int = 64 * MIB
    free_view: int = 64 * MIB


DEFAULT = Limits()
