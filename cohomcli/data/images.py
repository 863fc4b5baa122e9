"""Images as small grids of grey levels, by Pillow, which comes with matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.data.gridtext import LARGEST
from cohomcli.errors import InputRefused
from cohomcli.names import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


def read_image(path: Path, levels: int, size: tuple[int, int] | None) -> NDArray[Any]:
    """The first frame in grey (ITU-R 601 luma), resized to `size` (rows, columns) by box averages, in `levels` equal
    steps: (H, W) int, 0 for black. Transparent pixels are white.

    Raises:
        InputRefused: not readable as an image, or too large without `size`.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            if size is None and max(opened.size) > LARGEST:
                raise InputRefused(
                    f"{printable(path)} has {opened.size[1]} x {opened.size[0]} pixels", "resize with --grid-size HxW"
                )
            image = opened.convert("RGBA")
            paper = Image.new("RGBA", image.size, "white")
            grey = Image.alpha_composite(paper, image).convert("L")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputRefused(f"{printable(path)} cannot be read as an image", "give PNG, JPEG, GIF or BMP") from error
    if size is not None:
        grey = grey.resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(grey).astype(int) * levels // 256
