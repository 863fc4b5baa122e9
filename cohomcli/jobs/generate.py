"""The job behind `cohom generate`: new grids, or grids completed, as text, pictures and an animation of the passes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config, dump_yaml
from cohomcli.data.gridtext import UNKNOWN, TextGrid, read_grids, write_grid
from cohomcli.errors import InputRefused, UsageError
from cohomcli.jobs.analyze import Finished, Outcome, write_outcome
from cohomcli.jobs.compute import prepare
from cohomcli.jobs.entry import load_options
from cohomcli.jobs.grids import MODEL_TYPE, is_grid_model, parse_size
from cohomcli.jobs.verdicts import check_targets
from cohomcli.names import printable, safe_name
from cohomcli.progress import Progress
from cohomcli.registry import did_you_mean
from cohomcli.results import Claim, Entry
from cohomcli.runs.entries import save_entry
from cohomcli.runs.files import read_json, writing
from cohomcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from cohomcli.models.spec import LoadedModel, ModelSource
    from cohomcli.training.decoding import DecodingOptions
    from cohomcli.training.generated import GeneratedGrid, GenerationResult

COMMAND = "generate"
TEXT, JSON_LINES, SHEET, ANIMATION, IMAGES = "grids.txt", "grids.jsonl", "grids.png", "steps.gif", "images"
TOGETHER = 256  # grids decoded in one batch
SHOWN = 100  # grids on the sheet and in the animation
ALL = "all"


@dataclass(frozen=True)
class _Canvas:
    """One grid to fill: its rows with UNKNOWN in them, the class asked for, and where it is from."""

    rows: tuple[str, ...]
    label: str
    source: str = ""


@dataclass(frozen=True)
class _Parts:
    loaded: LoadedModel
    canvases: tuple[_Canvas, ...]
    options: DecodingOptions


def generate(config: Config, argv: list[str], progress: Progress) -> Outcome:
    """Fill grids with the one model of `config` into a new run folder.

    Raises:
        CohomError: refused input or options; nothing is left behind then.
    """
    check_targets(config.output)
    parts = _prepare(config)
    run = RunFolder.create(
        Path(config.output.dir), COMMAND, parts.loaded.info.name, argv, config.output.name, dump_yaml(config)
    )
    with run:
        result = _decode(parts, progress)
        with writing(run.stage):
            _write(run, result, config.generation.animate)
        run.manifest["seconds"] = round(result.seconds, 3)
        passes = "1 pass" if result.steps == 1 else f"{result.steps} passes"
        entry = Entry(
            model=parts.loaded.info.name,
            dataset=safe_name(Path(config.generation.complete).stem) if config.generation.complete else "",
            info=parts.loaded.info,
            generation=result,
            claims=(Claim(f"{len(result.grids)} grids filled in {passes}; given cells unchanged", "measured"),),
            notes=parts.loaded.notes,
        )
        save_entry(run, entry)
        return write_outcome(run, Finished(COMMAND, config, [entry]), progress)


def _prepare(config: Config) -> _Parts:
    """Load the model and lay out what is to be filled, before anything is written."""
    from cohomcli.models.load import load
    from cohomcli.training.decoding import DecodingOptions

    prepare(config.compute)
    if len(config.models) != 1:
        raise UsageError("generate takes one model", "run it once for each")
    wanted = config.generation
    options = DecodingOptions(wanted.steps, wanted.temperature, wanted.guidance, wanted.noise, seed=config.compute.seed)
    loaded = load(_source(config.models[0]), load_options(config))
    if not is_grid_model(loaded.model):
        raise _no_grid_model(loaded.info.name)
    settings: Any = loaded.model.config
    labels = _labels(settings, wanted.labels)
    if wanted.complete is not None:
        if wanted.size is not None:
            raise UsageError("--size is for new grids", "the grids to complete have theirs")
        grids = list(read_grids(Path(wanted.complete)))
        if not grids:
            raise InputRefused(f"{printable(wanted.complete)} holds no grid", "rows of symbols, ? for a cell to fill")
        canvases = [canvas for grid in grids for canvas in _completions(settings, grid, labels)]
    else:
        height, width = parse_size(wanted.size) or (settings.height, settings.width)
        _check_size(settings, (height, width), f"--size {height}x{width}")
        canvases = [_Canvas((UNKNOWN * width,) * height, label) for label in labels or ("",)]
    if options.guidance and not all(canvas.label for canvas in canvases):
        raise UsageError("--guidance needs a class for every grid", "name one with --label, or leave guidance at 0")
    repeated = tuple(canvas for canvas in canvases for _ in range(wanted.count))
    return _Parts(loaded, repeated, options)


def _source(reference: str) -> ModelSource:
    """The model folder `reference`, or that in the run folder `reference`; refused early if its type is another."""
    from cohomcli.models.folder import read_config
    from cohomcli.models.resolve import resolve

    inside = Path(reference) / "model"
    run = (inside / "config.json").is_file() and (Path(reference) / "results.json").is_file()
    source = resolve(str(inside) if run else reference)
    path = source.path
    if path is not None and path.is_dir() and read_config(path).get("model_type") != MODEL_TYPE:
        raise _no_grid_model(source.name)
    return replace(source, name=_trained_name(Path(reference))) if run else source


def _trained_name(run: Path) -> str:
    """The name under which the run trained its model."""
    return safe_name(str(read_json(run / "results.json").get("model", "model")))


def _no_grid_model(name: str) -> InputRefused:
    return InputRefused(
        f"{name} is no model of grids", "train one: cohom train -c configs/digits.yaml, then name its run folder"
    )


def _labels(settings: Any, wished: Sequence[str]) -> tuple[str, ...]:
    known = list(settings.class_names)
    if wished and not known:
        raise UsageError("the model's grids have no classes", "leave --label out")
    if list(wished) == [ALL]:
        return tuple(known)
    for label in wished:
        if label not in known:
            hint = did_you_mean(label, known) if len(known) > 20 else f"it has {', '.join(known)}"
            raise UsageError(f"the model has no class {printable(repr(label))}", hint)
    return tuple(wished)


def _completions(settings: Any, grid: TextGrid, labels: Sequence[str]) -> list[_Canvas]:
    _check_size(settings, grid.size, grid.where)
    if UNKNOWN not in grid.text:
        raise InputRefused(f"{grid.where}: no cell to fill", f"write {UNKNOWN} for cells that are not known")
    if strange := sorted(set(grid.text) - set(settings.symbols) - {UNKNOWN, "\n"}):
        raise InputRefused(
            f"{grid.where}: symbol {printable(repr(strange[0]))} is none of the model's",
            f"it has {settings.symbols!r} and {UNKNOWN}",
        )
    own = _labels(settings, [grid.label]) if grid.label else ("",)
    return [_Canvas(grid.rows, label, grid.where) for label in labels or own]


def _check_size(settings: Any, size: tuple[int, int], where: str) -> None:
    if size[0] > settings.height or size[1] > settings.width:
        raise InputRefused(
            f"{where}: {size[0]} x {size[1]} cells do not fit a model for {settings.height} x {settings.width}",
            "give a smaller grid",
        )


def _decode(parts: _Parts, progress: Progress) -> GenerationResult:
    from cohomcli.training.data import mix
    from cohomcli.training.generated import GenerationResult

    begun, options = time.monotonic(), parts.options
    settings: Any = parts.loaded.model.config
    found: dict[int, GeneratedGrid] = {}
    batches = _batches(parts.canvases)
    progress("generate", 0, len(parts.canvases))
    for number, at in enumerate(batches):
        chosen = [parts.canvases[i] for i in at]
        seeded = replace(options, seed=mix(options.seed, number))
        found |= dict(zip(at, _decoded(parts.loaded, chosen, seeded), strict=True))
        progress("generate", len(found), len(parts.canvases))
    return GenerationResult(
        grids=tuple(found[at] for at in range(len(parts.canvases))),
        symbols=str(settings.symbols),
        palette=str(settings.palette),
        steps=options.steps,
        temperature=options.temperature,
        guidance=options.guidance,
        noise=options.noise,
        seed=options.seed,
        seconds=time.monotonic() - begun,
    )


def _batches(canvases: Sequence[_Canvas]) -> list[list[int]]:
    """Positions of canvases of one size and with or without a class, so many together."""
    groups: dict[Any, list[int]] = {}
    for at, canvas in enumerate(canvases):
        groups.setdefault((len(canvas.rows), len(canvas.rows[0])), []).append(at)
    return [group[i : i + TOGETHER] for group in groups.values() for i in range(0, len(group), TOGETHER)]


def _decoded(loaded: LoadedModel, canvases: Sequence[_Canvas], options: DecodingOptions) -> list[GeneratedGrid]:
    import torch

    from cohomcli.data.grids import cells_of
    from cohomcli.training.decoding import decode
    from cohomcli.training.generated import GeneratedGrid

    settings: Any = loaded.model.config
    size = len(canvases[0].rows), len(canvases[0].rows[0])
    texts = tuple("\n".join(canvas.rows) for canvas in canvases)
    cells = torch.from_numpy(cells_of(texts, settings.symbols, size, settings.mask_token_id))
    known = list(settings.class_names)
    ids = [known.index(canvas.label) if canvas.label else len(known) for canvas in canvases]
    done = decode(loaded.model, cells, options, torch.tensor(ids) if known else None)
    grids = []
    for canvas, grid, at, sure in zip(canvases, done.grids, done.filled_at, done.confidence, strict=True):
        rows = tuple("".join(settings.symbols[cell] for cell in row) for row in grid.tolist())
        filled = tuple(tuple(row) for row in at.tolist())
        mean = float(sure[at > 0].double().mean())
        grids.append(GeneratedGrid(rows, filled, canvas.label, mean, canvas.source))
    return grids


def _write(run: RunFolder, result: GenerationResult, animate: bool) -> None:
    """`grids.txt`, `grids.jsonl`, a picture of every grid, one of all, and the passes as an animation if wanted."""
    from cohomcli.report import gridimages as images

    run.write(TEXT, "".join(write_grid(grid.rows, grid.label) for grid in result.grids))
    run.write(JSON_LINES, "".join(_line(grid) for grid in result.grids))
    palette = images.colours(result.symbols, result.palette)
    shown = result.grids[:SHOWN]
    columns, cell = images.shape_of_sheet([grid.rows for grid in shown])
    images.write_png(images.sheet([grid.rows for grid in shown], palette, columns, cell), run.path(SHEET))
    digits = max(4, len(str(len(result.grids) - 1)))
    for at, grid in enumerate(result.grids):
        name = f"{at:0{digits}d}" + (f"-{safe_name(grid.label)}" if grid.label else "")
        images.write_png(images.pixels(grid.rows, palette, cell), run.path(f"{IMAGES}/{name}.png"))
    if animate:
        frames = [
            images.sheet([grid.after(step, UNKNOWN) for grid in shown], palette, columns, cell)
            for step in range(result.steps + 1)
        ]
        images.write_gif(frames, run.path(ANIMATION))


def _line(grid: GeneratedGrid) -> str:
    record = {"label": grid.label or None, "text": "\n".join(grid.rows), "confidence": round(grid.confidence, 6)}
    return json.dumps(record | ({"source": grid.source} if grid.source else {})) + "\n"
