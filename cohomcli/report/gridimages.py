"""Grids as pixels: one colour a symbol, sheets of many grids, the passes of decoding as an animation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

HIDDEN = (204, 121, 167)  # Okabe and Ito's purple: neither a grey nor one of the ten colours below
PAPER = (255, 255, 255)
# the ten colours in which ARC's grids are shown everywhere
_TEN = ("000000", "0074d9", "ff4136", "2ecc40", "ffdc00", "aaaaaa", "f012be", "ff851b", "7fdbff", "870c25")
_FRAME_MS, _LAST_MS = 350, 1800
Rows = Sequence[str]


def colours(symbols: str, palette: str) -> dict[str, tuple[int, int, int]]:
    """Symbol to RGB: greys from black to white, or ten colours and then evenly spaced hues."""
    from colorsys import hls_to_rgb

    if palette == "grey":
        levels = [round(255 * at / max(len(symbols) - 1, 1)) for at in range(len(symbols))]
        return {symbol: (level, level, level) for symbol, level in zip(symbols, levels, strict=True)}
    found = {}
    for at, symbol in enumerate(symbols):
        if at < len(_TEN):
            red, green, blue = bytes.fromhex(_TEN[at])
        else:
            hue = math.modf(at * 0.618033988749895)[0]  # golden ratio: neighbours never look alike
            red, green, blue = (round(255 * part) for part in hls_to_rgb(hue, 0.45 + 0.2 * (at % 2), 0.6))
        found[symbol] = (red, green, blue)
    return found


def pixels(rows: Rows, palette: dict[str, tuple[int, int, int]], cell: int = 1) -> NDArray[Any]:
    """(H * cell, W * cell, 3) uint8; symbols that the palette does not know are shown as hidden."""
    import numpy as np

    flat = np.array([[palette.get(symbol, HIDDEN) for symbol in row] for row in rows], dtype=np.uint8)
    return flat.repeat(cell, axis=0).repeat(cell, axis=1)


def sheet(grids: Sequence[Rows], palette: dict[str, tuple[int, int, int]], columns: int, cell: int) -> NDArray[Any]:
    """Grids side by side in `columns` columns on white, one cell apart; sizes may differ."""
    import numpy as np

    height = max(len(rows) for rows in grids) + 1
    width = max(len(rows[0]) for rows in grids) + 1
    lines = -(-len(grids) // columns)
    canvas = np.full(((lines * height + 1) * cell, (columns * width + 1) * cell, 3), PAPER, dtype=np.uint8)
    for at, rows in enumerate(grids):
        image = pixels(rows, palette, cell)
        top, left = (1 + (at // columns) * height) * cell, (1 + (at % columns) * width) * cell
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def shape_of_sheet(grids: Sequence[Rows], wished: int | None = None) -> tuple[int, int]:
    """(columns, pixels per cell) for a picture of about a thousand pixels."""
    columns = wished or math.ceil(math.sqrt(len(grids)))
    across = columns * (max(len(rows[0]) for rows in grids) + 1) + 1
    return columns, max(1, min(24, 1000 // across))


def write_png(image: NDArray[Any], path: Path) -> None:
    """Write pixels (H, W, 3) without metadata: equal pictures are equal files."""
    from PIL import Image

    Image.fromarray(image).save(path, format="PNG")


def write_gif(frames: Sequence[NDArray[Any]], path: Path) -> None:
    """Write an endless animation whose last frame stays longer."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    durations = [_FRAME_MS] * (len(images) - 1) + [_LAST_MS]
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False
    )
