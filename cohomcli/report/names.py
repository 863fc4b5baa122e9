"""Names and numbers as a reader sees them: hostile text made harmless, floats made short, file names made safe."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable

UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"
DASH = "\N{EN DASH}"
_FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn"}


def clean(text: str, limit: int = 160) -> str:
    """`text` on one line, without control, bidirectional or surrogate characters, its middle cut beyond `limit`.

    Model, layer and data set names come from users, hubs and files. This makes them safe to print; escaping for
    markdown or HTML is the renderer's work.
    """
    line = re.sub(r"\s+", " ", text).strip()
    line = "".join(UNPRINTABLE if unicodedata.category(c) in _FORBIDDEN else c for c in line)
    if len(line) > limit:
        tail = limit // 3
        line = f"{line[: limit - tail - 1]}\N{HORIZONTAL ELLIPSIS}{line[-tail:]}"
    return line


def slug(text: str, limit: int = 48) -> str:
    """`text` as a part of a file name on any system: lower-case ASCII letters, digits, `.`, `_` and `-`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9_.]+", "-", plain.lower())[:limit].strip("-._") or "unnamed"


def unique_slugs(names: Iterable[str]) -> list[str]:
    """One slug per name, in order; a repeated slug is numbered so that no two are equal."""
    taken: set[str] = set()
    result = []
    for name in names:
        base = candidate = slug(name)
        number = 1
        while candidate in taken:
            number += 1
            candidate = f"{base}-{number}"
        taken.add(candidate)
        result.append(candidate)
    return result


def number(value: float | None, digits: int = 4, zeros: bool = False) -> str:
    """`value` with `digits` significant digits: `15,690`, `0.1234`, `1.5e-7`; a dash for None.

    `zeros` keeps trailing zeros after the point (`3.00`), for columns of a table.
    """
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    magnitude = int(exponent)
    if -4 <= magnitude <= 6:
        text, power = f"{float(f'{mantissa}e{exponent}'):,.{max(digits - 1 - magnitude, 0)}f}", ""
    else:
        text, power = mantissa, f"e{magnitude}"
    return (text if zeros or "." not in text else text.rstrip("0").rstrip(".")) + power


def ratio(value: float | None) -> str:
    """A factor, such as `1.13` with a multiplication sign; a dash for None."""
    return DASH if value is None else f"{number(value, 3)}\N{MULTIPLICATION SIGN}"


def percent(share: float, zeros: bool = False) -> str:
    """A share of one in percent; 100 % is only said of the whole and 0 % only of nothing. `zeros` as in `number`."""
    text = f"{100 * share:.1f}"
    if share < 1 and text == "100.0":
        return "<100 %"
    if share > 0 and text == "0.0":
        return "<0.1 %"
    return f"{text if zeros else text.removesuffix('.0')} %"


def tick(value: float) -> str:
    """A number for an axis: `0.02`, `5`, `1k`, `20k`, `3M`."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if limit <= abs(value) < limit * 1000:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def count(n: int, singular: str, plural: str = "") -> str:
    """`1 layer`, `7 layers`, `no layers`."""
    return f"{f'{n:,}' if n else 'no'} {singular if n == 1 else plural or singular + 's'}"


def listing(items: Iterable[str], most: int = 6) -> str:
    """`a, b and c`; beyond `most` items the rest is counted."""
    words = list(items)
    if len(words) > most:
        return f"{', '.join(words[: most - 1])} and {len(words) - most + 1} more"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def size(n_bytes: float) -> str:
    """Bytes for people with three significant digits: `87 B`, `512 KiB`, `71.2 MiB`."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(n_bytes) >= 1024**power:
            return f"{number(n_bytes / 1024**power, 3)} {unit}"
    return f"{n_bytes:,.0f} B"
