"""Are the p-values and confidence limits of the topology what they claim to be? Simulations with known truth.

    python -m benchmarks.evidence false-positives        # share of structureless layers called significant at 5%
    python -m benchmarks.evidence power                  # noisy circle and torus
    python -m benchmarks.evidence cost                   # 100-replicate limits of 31 layers of 500 points
    python -m benchmarks.evidence bootstrap              # what resampling with replacement would give instead
    python -m benchmarks.evidence models                 # trained against untrained tiny-gpt, and untrained alone

The coverage of the limits is measured by benchmarks/coverage.py. Every command prints its CPU seconds. The sizes are
those of the tables in docs/topology.md; --runs makes them smaller.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from cohomcli.topology.bands import Texts, limits
from cohomcli.topology.nulls import NULLS
from cohomcli.topology.persistence import rips
from cohomcli.topology.pointcloud import make_cloud
from cohomcli.topology.replicates import bars_of
from cohomcli.topology.significance import NullTest, draw_test, p_values
from cohomcli.topology.summaries import betti_curve, summarize

Array = NDArray[np.float64]
Rng = np.random.Generator
ENGINE = "redzed"


def isotropic(n: int, rng: Rng) -> Array:
    """Gaussian in 10 dimensions."""
    return rng.standard_normal((n, 10))


def wide(n: int, rng: Rng) -> Array:
    """Gaussian in 50 dimensions."""
    return rng.standard_normal((n, 50))


def anisotropic(n: int, rng: Rng) -> Array:
    """Gaussian in 50 dimensions with standard deviations 1 / i."""
    return rng.standard_normal((n, 50)) / np.arange(1, 51)


def clusters(n: int, rng: Rng) -> Array:
    """Ten Gaussian clusters in 20 dimensions, always at the same places."""
    centres = 2.0 * np.random.default_rng(7).standard_normal((10, 20))
    return centres[rng.integers(0, 10, n)] + 0.7 * rng.standard_normal((n, 20))


def circle(n: int, rng: Rng) -> Array:
    """Unit circle with noise of standard deviation 0.1 in 10 dimensions."""
    angle = rng.uniform(0, 2 * np.pi, n)
    points = 0.1 * rng.standard_normal((n, 10))
    points[:, :2] += np.column_stack([np.cos(angle), np.sin(angle)])
    return points


def torus(n: int, rng: Rng) -> Array:
    """Torus with radii 2 and 0.8, with noise of standard deviation 0.1 in 10 dimensions."""
    a, b = rng.uniform(0, 2 * np.pi, (2, n))
    ring = 2 + 0.8 * np.cos(b)
    points = 0.1 * rng.standard_normal((n, 10))
    points[:, :3] += np.column_stack([ring * np.cos(a), ring * np.sin(a), 0.8 * np.sin(b)])
    return points


def heavy_tails(n: int, rng: Rng) -> Array:
    """Multivariate Student t with 3 degrees of freedom in 10 dimensions: no loops, but no Gaussian either."""
    return rng.standard_normal((n, 10)) / np.sqrt(rng.chisquare(3, (n, 1)) / 3)


CLOUDS: dict[str, Callable[[int, Rng], Array]] = {
    f.__name__: f for f in (isotropic, wide, anisotropic, clusters, circle, torus, heavy_tails)
}


def p_of(points: Array, null: str, replicates: int, seed: int, pca: int = 50) -> Array:
    """p-values in H0 and H1 of one layer, PCA included."""
    cloud = make_cloud(points.astype(np.float32), pca)
    return p_values(draw_test(cloud.points, NullTest("layer", "euclidean", ENGINE, 1, null, replicates, seed)))


def false_positives(arguments: argparse.Namespace) -> None:
    """Runs of 4 layers of pure noise, reduced from 20 to 10 dimensions by PCA."""
    runs, layers, n, width, pca, replicates = arguments.runs or 200, 4, 60, 20, 10, 39
    spreads = {"isotropic": np.ones(width), "anisotropic": 1 / np.arange(1.0, width + 1)}
    print(f"{runs} runs x {layers} layers, {n} points, {width} to {pca} dimensions, {replicates} replicates")
    print(f"{'null':<10} {'noise':<12} {'H0':>7} {'H1':>7}   share with p <= 0.05")
    for null in [arguments.null] if arguments.null else sorted(NULLS, key=lambda name: name != "rotation"):
        for noise, spread in spreads.items():
            rng = np.random.default_rng(1)
            p = np.array(
                [
                    p_of(spread * rng.standard_normal((n, width)), null, replicates, seed, pca)
                    for seed in range(runs * layers)
                ]
            )
            share = (p <= 0.05).mean(axis=0)
            print(f"{null:<10} {noise:<12} {share[0]:>7.1%} {share[1]:>7.1%}", flush=True)


def power(arguments: argparse.Namespace) -> None:
    """p-values of loops that are there, and of clouds without any."""
    runs, n, replicates = arguments.runs or 20, 200, 199
    print(f"{runs} clouds of {n} points, {replicates} replicates of the null 'rotation'; p of H1")
    for name in ("circle", "torus", "heavy_tails", "clusters"):
        rng = np.random.default_rng(2)
        p = np.array([p_of(CLOUDS[name](n, rng), "rotation", replicates, seed)[1] for seed in range(runs)])
        print(f"{name:<12} median {np.median(p):.3f}, largest {p.max():.3f}, p < 0.01 in {np.mean(p < 0.01):.0%}")


def cost(arguments: argparse.Namespace) -> None:
    """CPU seconds of the limits alone, for 31 layers of 500 texts x 576: Gaussian and clustered ones in turn."""
    layers, n, width, subsamples = arguments.runs or 31, 500, 576, 100
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((10, width))
    spread = np.arange(1, width + 1) ** -0.5
    spent = []
    for layer in range(layers):
        noise = spread * rng.standard_normal((n, width))
        cloud = make_cloud((noise + centres[rng.integers(0, 10, n)] * spread * (layer % 2)).astype(np.float32), 50)
        distances = pdist(cloud.points)
        diagrams = rips(distances, 1, ENGINE)
        summaries = [summarize(diagram, float(distances.mean())) for diagram in diagrams]
        start = time.process_time()
        limits(Texts(distances, np.arange(n), ENGINE, 1), summaries, betti_curve(diagrams), subsamples, layer)
        spent.append(time.process_time() - start)
    print(f"{layers} layers x {n} points: {subsamples} half and {subsamples // 2} larger subsamples each, H0 and H1: "
          f"{sum(spent):.1f} CPU-seconds, {min(spent):.2f} to {max(spent):.2f} a layer")  # fmt: skip


def bootstrap(arguments: argparse.Namespace) -> None:
    """Percentile intervals of the bootstrap with replacement, beside ours and beside fresh samples."""
    n, replicates = 500, arguments.runs or 100
    rng = np.random.default_rng(5)
    points = wide(n, rng)
    distances = pdist(points)
    diagrams = rips(distances, 1, ENGINE)
    summaries = [summarize(diagram, float(distances.mean())) for diagram in diagrams]
    found = limits(Texts(distances, np.arange(n), ENGINE, 1), summaries, betti_curve(diagrams), 100, 0)
    assert found is not None
    resampled = [_totals(points[rng.integers(0, n, n)]) for _ in range(replicates)]
    fresh = [_totals(wide(n, rng)) for _ in range(replicates)]
    print(f"Gaussian, {n} points in 50 dimensions, {replicates} replicates: 95% intervals")
    for i, (k, name) in enumerate(_TOTALS):
        value = float(getattr(summaries[k], name))
        low, high = np.quantile([r[i] for r in resampled], [0.025, 0.975])
        true_low, true_high = np.quantile([r[i] for r in fresh], [0.025, 0.975])
        ours = found.intervals[k].get(name)
        limits_text = f"[{ours[0]:.1f}, {ours[1]:.1f}]" if ours else "none"
        print(f"  H{k} {name:<18} here {value:.1f}; with replacement [{low:.1f}, {high:.1f}]; ours {limits_text}; "
              f"fresh samples [{true_low:.1f}, {true_high:.1f}]")  # fmt: skip


_TOTALS = ((0, "total_persistence"), (1, "total_persistence"), (1, "count"))


def _totals(points: Array) -> list[float]:
    bars = bars_of(pdist(points), 1, ENGINE)
    return [float((bars[0][:, 1]).sum()), float((bars[1][:, 1] - bars[1][:, 0]).sum()), float(len(bars[1]))]


def models(arguments: argparse.Namespace) -> None:
    """tiny-gpt against re-initialisations of itself, and each re-initialisation against the others."""
    from cohomcli.topology.permutation import ExchangeOptions, exchange_models, exchange_texts, shape_of_cloud

    others, n = arguments.runs or 39, 100
    options = ExchangeOptions()
    layers = list(_activations(others, n))
    shapes = [{name: shape_of_cloud(x, options) for name, x in model.items()} for model in layers]
    trained, untrained = shapes[0], shapes[1:]
    print(f"exchange_models, {n} texts, {len(trained)} layers:")
    found = exchange_models([trained], untrained, options)
    print(f"  trained against {others} seeds of the untrained model: p = {found.p_value:.3f}, "
          f"statistic {found.statistic:.3f}")  # fmt: skip
    seeds = [
        exchange_models([untrained[i]], untrained[:i] + untrained[i + 1 :], options).p_value for i in range(others)
    ]
    print(f"  each untrained seed against the others: p <= 0.05 for {np.mean(np.array(seeds) <= 0.05):.1%}, "
          f"median {np.median(seeds):.2f}")  # fmt: skip
    half = others // 2
    split = exchange_models(untrained[:half], untrained[half:], options)
    print(f"  untrained seeds against untrained seeds, {half} and {others - half}: p = {split.p_value:.2f}")
    print(f"exchange_texts, {options.blocks} blocks, layer_3 (two fixed models, the texts are the sample):")
    names = [("trained, untrained", 0, 1), *((f"seed {i - 1}, seed {i}", i, i + 1) for i in range(1, min(others, 9)))]
    for name, i, j in names:
        p = exchange_texts(layers[i]["layer_3"], layers[j]["layer_3"], options).p_value
        print(f"  {name}: p = {p:.3f}")


def _activations(others: int, n: int) -> Iterator[dict[str, Any]]:
    """Layers of tiny-gpt as trained, then of `others` models with its configuration and fresh weights."""
    import torch

    from cohomcli.data.sample import load_texts
    from cohomcli.data.spec import DatasetSpec
    from cohomcli.models.activations import collect
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import ActivationOptions, LoadOptions

    texts = load_texts(DatasetSpec("builtin"), n, 0).texts
    loaded = load(resolve("tiny-gpt"), LoadOptions())
    options = ActivationOptions(perplexity=False)
    yield dict(collect(loaded, texts, options).layers)
    for seed in range(others):
        torch.manual_seed(seed)
        fresh = type(loaded.model)(loaded.model.config).eval()
        yield dict(collect(replace(loaded, model=fresh), texts, options).layers)


COMMANDS = {
    "false-positives": false_positives,
    "power": power,
    "cost": cost,
    "bootstrap": bootstrap,
    "models": models,
}


def main() -> None:
    """Run one of COMMANDS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--runs", type=int, default=0, help="simulations, layers, replicates or models")
    parser.add_argument("--null", choices=list(NULLS), help="of false-positives [all]")
    arguments = parser.parse_args()
    start = time.process_time()
    COMMANDS[arguments.command](arguments)
    print(f"{time.process_time() - start:.1f} CPU-seconds")


if __name__ == "__main__":
    main()
