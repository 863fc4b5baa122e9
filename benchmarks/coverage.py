"""How often do the 95% limits of figures and Betti curves hold the truth? Simulations in pieces, then one table.

    python -m benchmarks.coverage run --cloud circle --start 0 --stop 250 --save circle-0.npz
    python -m benchmarks.coverage table *.npz

The truth of a figure is its mean over all simulations of a cloud: the expected figure of as many points from the same
source, which is what the limits are for. Simulation i is drawn from (seed, i) alone, so pieces may run anywhere. With a
1,000 simulations the standard error of a coverage of 95% is 0.7%. `tiny-gpt` draws from 6,000 lines of the built-in
plays, as the activations of layer_3 on 50 principal axes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from benchmarks.evidence import CLOUDS, ENGINE, Array
from cohomcli.topology.bands import Texts, limits
from cohomcli.topology.persistence import rips
from cohomcli.topology.replicates import bars_of
from cohomcli.topology.results import BettiCurve, Diagram
from cohomcli.topology.summaries import summarize

TINY_GPT = "tiny-gpt"
POOL = 6000
SUBSAMPLES = 100
GRID = 256


def draw(cloud: str, n: int, seed: int, at: int) -> Array:
    """The points of simulation `at`."""
    rng = np.random.default_rng((seed, at))
    if cloud == TINY_GPT:
        points = _pool()
        return points[rng.choice(len(points), n, replace=False)]
    return CLOUDS[cloud](n, rng)


@cache
def _pool() -> Array:
    """What stands for infinitely many texts: the lines of 30 characters or more of the built-in plays, without PCA."""
    import cohomcli.assets
    from cohomcli.models.activations import collect
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import ActivationOptions, LoadOptions
    from cohomcli.topology.pointcloud import make_cloud

    files = sorted((Path(cohomcli.assets.__file__).parent / "corpus").rglob("*.txt"))
    lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    distinct = list(dict.fromkeys(line for line in lines if len(line) >= 30))
    chosen = np.random.default_rng(0).choice(len(distinct), POOL, replace=False)
    loaded = load(resolve("tiny-gpt"), LoadOptions())
    found = collect(loaded, [distinct[i] for i in chosen], ActivationOptions(perplexity=False))
    return make_cloud(found.layers["layer_3"], 50).points


def simulate(points: Array, grid: Array, seed: int) -> dict[str, Any]:
    """The figures of one cloud with their limits, and its Betti curves with theirs."""
    distances = pdist(points)
    diagrams = rips(distances, 1, ENGINE)
    summaries = [summarize(diagram, float(distances.mean())) for diagram in diagrams]
    betti = BettiCurve(grid, curves_of(diagrams, grid))
    found = limits(Texts(distances, np.arange(len(points)), ENGINE, 1), summaries, betti, SUBSAMPLES, seed)
    assert found is not None
    named = [(k, name) for k, each in enumerate(found.intervals) for name in each]
    return {
        "names": np.array([f"H{k} {name}" for k, name in named]),
        "figures": np.array([float(getattr(summaries[k], name)) for k, name in named]),
        "limits": np.array([found.intervals[k][name] for k, name in named]),
        "curves": betti.values.astype(np.float32),
        "low": found.low.astype(np.float32),
        "high": found.high.astype(np.float32),
    }


def curves_of(diagrams: Sequence[Diagram], grid: Array) -> NDArray[np.int64]:
    """Betti numbers of H0 and H1 on `grid`."""
    curves = []
    for diagram in diagrams:
        births = np.concatenate([diagram.pairs[:, 0], diagram.essential])
        born = np.searchsorted(np.sort(births), grid, "right")
        curves.append(born - np.searchsorted(np.sort(diagram.pairs[:, 1]), grid, "right"))
    return np.array(curves, dtype=np.int64)


def run(arguments: argparse.Namespace) -> None:
    """Simulations `start` to `stop` of one cloud, into a file."""
    pilot = draw(arguments.cloud, arguments.points, arguments.seed, 10**9)
    end = 1.05 * max(float(bars[:, 1].max()) for bars in bars_of(pdist(pilot), 1, ENGINE))
    grid = np.linspace(0.0, end, GRID)
    begun = time.process_time()
    found = [
        simulate(draw(arguments.cloud, arguments.points, arguments.seed, at), grid, at)
        for at in range(arguments.start, arguments.stop)
    ]
    stacked: dict[str, Any] = {key: np.array([one[key] for one in found]) for key in found[0] if key != "names"}
    spent = time.process_time() - begun
    head: dict[str, Any] = {
        "cloud": arguments.cloud,
        "points": arguments.points,
        "seed": arguments.seed,
        "start": arguments.start,
    }
    np.savez_compressed(arguments.save, names=found[0]["names"], cpu=spent, **head, **stacked)
    print(f"{arguments.cloud}, simulations {arguments.start} to {arguments.stop}: {spent:.1f} CPU-seconds")


def table(arguments: argparse.Namespace) -> None:
    """Coverage of every figure by cloud, from the files of all pieces."""
    pieces: dict[tuple[str, int], list[Any]] = {}
    for path in sorted(arguments.files):
        piece = np.load(path)
        pieces.setdefault((str(piece["cloud"]), int(piece["points"])), []).append(piece)
    shares = {key: coverage(parts) for key, parts in pieces.items()}
    names = list(dict.fromkeys(name for share in shares.values() for name in share))
    for (cloud, points), parts in pieces.items():
        runs, spent = sum(len(p["figures"]) for p in parts), sum(float(p["cpu"]) for p in parts)
        print(f"{cloud}: {runs} simulations of {points} points, {spent:.0f} CPU-seconds")
    print("| figure | " + " | ".join(f"{cloud}, {points}" for cloud, points in shares) + " |")
    print("| :-- |" + " --: |" * len(shares))
    for name in names:
        print(
            f"| {name} | "
            + " | ".join(f"{share[name]:.1%}" if name in share else "" for share in shares.values())
            + " |"
        )


def coverage(parts: Sequence[Any]) -> dict[str, float]:
    """The share of simulations whose limits hold the mean over all of them, by figure; of curves the mean over places.

    Of a curve those places count where its standard deviation is at least 1: elsewhere it is constant but for rare
    events that one sample cannot show.
    """
    joined = {
        key: np.concatenate([part[key] for part in parts]) for key in ("figures", "limits", "curves", "low", "high")
    }
    truth = joined["figures"].mean(axis=0)
    inside = (joined["limits"][:, :, 0] <= truth) & (truth <= joined["limits"][:, :, 1])
    varies = joined["figures"].std(axis=0) > 0  # n distinct points always give n - 1 bars in H0
    names = map(str, parts[0]["names"])
    shares = zip(names, inside.mean(axis=0).tolist(), varies, strict=True)
    found = {name: share for name, share, counts in shares if counts}
    expected = joined["curves"].mean(axis=0)
    within = ((joined["low"] <= expected) & (expected <= joined["high"])).mean(axis=0)
    for k, deviation in enumerate(joined["curves"].std(axis=0)):
        if (busy := deviation >= 1).any():
            found[f"H{k} Betti curve"] = float(within[k][busy].mean())
    return found


def main() -> None:
    """Run simulations, or put together those that were run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("--cloud", choices=[*CLOUDS, TINY_GPT], default="circle")
    one.add_argument("--points", type=int, default=100)
    one.add_argument("--seed", type=int, default=2026)
    one.add_argument("--start", type=int, default=0)
    one.add_argument("--stop", type=int, default=1000)
    one.add_argument("--save", required=True)
    one.set_defaults(do=run)
    all_of_them = commands.add_parser("table")
    all_of_them.add_argument("files", nargs="+")
    all_of_them.set_defaults(do=table)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
