"""The figures of docs/generate.md: digits that a model of grids generates and completes, judged from outside.

    python -m benchmarks.grids                       # trains by `cohom train -c configs/digits.yaml`, then measures
    python -m benchmarks.grids --run experiments/latest --pictures docs/images

Class accuracy: a support vector machine that has seen real training digits only, on 10 x 50 grids, fresh seeds.
Completion: held-out digits with half of their cells hidden, at random or the lower half, no class given; the share of
hidden cells that are right. Against it: each cell's commonest value in the training grids, the nearest training grid on
the known cells, and a GPT-2 of equal size that reads the cells row by row and trained for as many CPU seconds as ours.
Prints one JSON object; about 5 CPU-minutes on one thread. Times are CPU seconds of whole processes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from benchmarks.raster import RasterModel
from cohomcli.data.apart import keep_apart
from cohomcli.data.grids import GridSpec, cells_of, load_grids
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadOptions
from cohomcli.report import gridimages
from cohomcli.training.decoding import DecodingOptions, decode
from cohomcli.training.grids import hide

CONFIG = "configs/digits.yaml"
LEVELS, APART, SIDE = 4, 0.2, 8
PASSES, PER_CLASS, SEEDS = (1, 2, 4, 8, 16), 50, (101, 102)
Cells = NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """The real grids as `cohom train` parts them: cells (n, 8, 8) and classes (n,) of both parts."""

    train: Cells
    train_classes: Cells
    held_out: Cells
    held_out_classes: Cells
    symbols: str


def real_digits() -> Digits:
    """The same split as in training: by the hash of each grid."""
    found = load_grids(GridSpec("digits", LEVELS), 0, 0)
    sample, apart = keep_apart(found.sample, APART)
    cells = [cells_of(texts, found.symbols, (SIDE, SIDE), LEVELS) for texts in (sample.texts, apart)]
    classes = [np.array([int(found.labels[text]) for text in texts]) for texts in (sample.texts, apart)]
    return Digits(cells[0], classes[0], cells[1], classes[1], found.symbols)


def train(folder: str) -> tuple[Path, float]:
    """Run the shipped configuration; (run folder, CPU seconds of the command)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "cohomcli", "train", "-c", CONFIG, "--quiet", "--no-html", "--no-plots"]
    subprocess.run([*command, "--output-dir", folder], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (Path(folder) / "latest").resolve(), spent


def generated(model: Any, passes: int, seed: int) -> tuple[Cells, Cells]:
    """PER_CLASS grids of every class and the classes asked for."""
    classes = torch.arange(10).repeat_interleave(PER_CLASS)
    canvas = torch.full((len(classes), SIDE, SIDE), LEVELS)
    return decode(model, canvas, DecodingOptions(passes, seed=seed), classes).grids.numpy(), classes.numpy()


def flat(cells: Cells) -> Cells:
    """(n, 64)."""
    return cells.reshape(len(cells), -1)


def generation(model: Any, digits: Digits) -> dict[str, Any]:
    """Class accuracy by the number of passes, and how the grids lie among real ones."""
    from sklearn.svm import SVC

    judge = SVC(C=10.0).fit(flat(digits.train), digits.train_classes)
    accuracy, made = {}, None
    for passes in PASSES:
        drawn = [generated(model, passes, seed) for seed in SEEDS]
        accuracy[passes] = [float(judge.score(flat(grids), classes)) for grids, classes in drawn]
        made = drawn[0] if passes == 8 else made
    assert made is not None
    return {
        "judge_on_held_out_digits": float(judge.score(flat(digits.held_out), digits.held_out_classes)),
        "class_accuracy_by_passes": accuracy,
        "generated_per_seed": 10 * PER_CLASS,
        "cells_unlike_nearest_training_grid": {
            "generated": nearest(made[0], digits.train),
            "held_out": nearest(digits.held_out, digits.train),
        },
        "copies_of_training_grids": int((distances(made[0], digits.train).min(1) == 0).sum()),
        "cells_unlike_another_of_the_class": {
            "generated": spread(*made),
            "held_out": spread(digits.held_out, digits.held_out_classes),
        },
    }


def distances(a: Cells, b: Cells) -> Cells:
    """How many cells differ, (len(a), len(b))."""
    return np.stack([(flat(b) != row).sum(1) for row in flat(a)])


def nearest(a: Cells, b: Cells) -> float:
    """Mean number of cells in which grids of `a` differ from the nearest of `b`."""
    return float(distances(a, b).min(1).mean())


def spread(grids: Cells, classes: Cells) -> float:
    """Mean number of cells in which two grids of one class differ."""
    found = []
    for one in range(10):
        between = distances(grids[classes == one], grids[classes == one])
        found.append(between.sum() / (len(between) * (len(between) - 1)))
    return float(np.mean(found))


def masks(n: int) -> dict[str, NDArray[np.bool_]]:
    """Half of the cells hidden: a random half of each grid, and the lower half."""
    noise = torch.rand(n, SIDE * SIDE, generator=torch.Generator().manual_seed(7))
    half = hide(torch.full((n,), 2 / 3), noise, torch.ones(n, SIDE * SIDE, dtype=torch.bool))  # cos(pi / 3) = 1/2
    lower = np.zeros((n, SIDE, SIDE), dtype=bool)
    lower[:, SIDE // 2 :] = True
    return {"random half": half.view(n, SIDE, SIDE).numpy(), "lower half": lower}


def by_majority(digits: Digits, hidden: NDArray[np.bool_]) -> Cells:
    """Each hidden cell gets its commonest value in the training grids."""
    counts = np.stack([(digits.train == level).sum(0) for level in range(LEVELS)])
    return np.where(hidden, counts.argmax(0), digits.held_out)


def by_nearest(digits: Digits, hidden: NDArray[np.bool_]) -> Cells:
    """Hidden cells are copied from the training grid that differs least on the known ones, in levels squared."""
    done = digits.held_out.copy()
    for at, unknown in enumerate(hidden):
        known = ~unknown
        gaps = ((digits.train[:, known] - digits.held_out[at][known]) ** 2).sum(1)
        done[at][unknown] = digits.train[gaps.argmin()][unknown]
    return done


def by_model(model: Any, passes: int) -> Callable[[Digits, NDArray[np.bool_]], Cells]:
    """Our model, the likeliest value of every cell, no class given."""

    def complete(digits: Digits, hidden: NDArray[np.bool_]) -> Cells:
        canvas = torch.from_numpy(np.where(hidden, LEVELS, digits.held_out))
        return decode(model, canvas, DecodingOptions(passes, temperature=0, noise=0)).grids.numpy()

    return complete


def completion(model: Any, raster: RasterModel, digits: Digits) -> tuple[dict[str, Any], dict[str, Cells]]:
    """Share of hidden cells that are right, by mask and method, with the paired difference to ours in 8 passes."""
    methods: dict[str, Callable[[Digits, NDArray[np.bool_]], Cells]] = {
        "ours, 8 passes": by_model(model, 8),
        "ours, 1 pass": by_model(model, 1),
        "row by row (GPT-2)": lambda digits, hidden: raster.complete(digits.held_out, hidden),
        "nearest training grid": by_nearest,
        "majority of the cell": by_majority,
    }
    table: dict[str, Any] = {}
    shown: dict[str, Cells] = {}
    for name, hidden in masks(len(digits.held_out)).items():
        right = {}
        for method, complete in methods.items():
            done = complete(digits, hidden)
            assert (done == digits.held_out)[~hidden].all()
            right[method] = ((done == digits.held_out) & hidden).sum((1, 2)) / hidden.sum((1, 2))
            if name == "random half":
                shown[method] = done
        ours = right["ours, 8 passes"]
        table[name] = {
            method: {"accuracy": float(share.mean()), "ours_better_by": paired(ours - share)}
            for method, share in right.items()
        }
    return table, shown


def paired(difference: NDArray[np.float64]) -> list[float]:
    """Mean over the grids and its 95% limits, normal approximation."""
    half = 1.96 * difference.std(ddof=1) / len(difference) ** 0.5
    return [float(difference.mean()), float(difference.mean() - half), float(difference.mean() + half)]


def bits(model: Any, digits: Digits) -> float:
    """Mean bits per hidden cell of a random half of the held-out grids, one pass."""
    hidden = torch.from_numpy(masks(len(digits.held_out))["random half"])
    cells = torch.from_numpy(digits.held_out)
    with torch.no_grad():
        logits = model(cells.masked_fill(hidden, LEVELS)).logits
    return float(cross_entropy(logits[hidden], cells[hidden])) / float(np.log(2))


def draw(folder: Path, model: Any, digits: Digits, shown: dict[str, Cells]) -> None:
    """The three pictures of docs/generate.md."""
    palette = gridimages.colours(digits.symbols, "grey")

    def rows(cells: Any, hidden: Any = None) -> list[str]:
        marked = np.where(hidden, LEVELS, cells) if hidden is not None else cells
        return ["".join((*digits.symbols, "?")[cell] for cell in line) for line in marked]

    classes = torch.arange(10)
    done = decode(model, torch.full((10, SIDE, SIDE), LEVELS), DecodingOptions(8, seed=5), classes)
    frames = [[rows(grid, at > step) for grid, at in zip(done.grids, done.filled_at, strict=True)] for step in range(9)]
    strips = [grid for frame in frames for grid in frame]
    gridimages.write_png(gridimages.sheet(strips, palette, 10, 6), folder / "digits-steps.png")
    gridimages.write_gif([gridimages.sheet(frame, palette, 5, 10) for frame in frames], folder / "digits-steps.gif")
    chosen = [int(np.flatnonzero(digits.held_out_classes == one)[0]) for one in range(10)]
    hidden = masks(len(digits.held_out))["random half"]
    lines = [[rows(digits.held_out[at], hidden[at]) for at in chosen]]
    lines += [
        [rows(shown[method][at]) for at in chosen]
        for method in ("ours, 8 passes", "row by row (GPT-2)", "nearest training grid", "majority of the cell")
    ]
    lines.append([rows(digits.held_out[at]) for at in chosen])
    strips = [grid for line in lines for grid in line]
    gridimages.write_png(gridimages.sheet(strips, palette, 10, 6), folder / "digits-completed.png")


def main() -> int:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished training run instead of a new one")
    parser.add_argument("--seconds", type=float, default=90.0, help="with --run: CPU seconds of the row-by-row model")
    parser.add_argument("--output-dir", help="folder that keeps the new training run")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures of docs/generate.md")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run, spent = (wanted.run, wanted.seconds) if wanted.run else train(wanted.output_dir or folder)
        model = load(resolve(str(run / "model")), LoadOptions()).model
    digits = real_digits()
    raster = RasterModel(LEVELS, SIDE * SIDE)
    begun = time.process_time()
    steps = raster.train(digits.train, digits.train_classes, spent)
    table, shown = completion(model, raster, digits)
    if wanted.pictures:
        draw(wanted.pictures, model, digits, shown)
    result = {
        "train_cpu_seconds": None if wanted.run else spent,
        "parameters": {"ours": sum(p.numel() for p in model.parameters()), "row by row": raster.n_parameters},
        "row_by_row": {"steps": steps, "cpu_seconds": time.process_time() - begun},
        "n_train": len(digits.train),
        "n_held_out": len(digits.held_out),
        "bits_per_cell_random_half": bits(model, digits),
        "generation": generation(model, digits),
        "completion": table,
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
