"""Permutation tests between layers and between models: is the difference of two shapes more than chance?

The difference of two clouds is the L1 distance of their Betti curves as functions of distance / scale, divided by the
number of points and summed over the dimensions: scale-free, and defined for clouds in different spaces. In H0 it is the
1-Wasserstein distance between the merge heights. Groups of clouds are compared by the energy statistic of these
distances (Szekely, Rizzo 2004; for diagrams: Robinson, Turner, Journal of Applied and Computational Topology 1, 2017).

What is exchanged decides what is tested:

- `exchange_texts`: two layers, models or checkpoints that read the same texts. The texts fall into blocks of equal
  size; each block gives one diagram per side, and the two sides of a block are swapped at random. Null hypothesis: on a
  random block, swapping the sides does not change the law of the pair of diagrams. Two models that differ at all are
  told apart by enough texts, two seeds of one architecture too: they are different functions.
- `exchange_models`: two groups of models, whose labels are permuted. Null hypothesis: all are drawn from one population
  of models, such as the seeds of one architecture. With one model against S others the p-value is its rank among them,
  and 1 / (S + 1) at least.

The `_by_layer` twins test every layer under the same arrangements, so that p-values can be corrected for all layers
together by the largest standardised statistic (Westfall, Young, "Resampling-based multiple testing", 1993).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from cohomcli.errors import UsageError
from cohomcli.topology.engines import choose_engine
from cohomcli.topology.metrics import space_of
from cohomcli.topology.pointcloud import make_cloud, scale
from cohomcli.topology.replicates import bars_of
from cohomcli.topology.results import Array, LayerTopology

EXACT_UP_TO = 9_999
SLACK = 1e-12  # equal statistics may differ by rounding
MIN_BLOCKS, MIN_BLOCK = 5, 8


@dataclass(frozen=True)
class Shape:
    """The bars (k, 2) of one cloud per dimension, over its scale, and its number of points."""

    bars: tuple[Array, ...]
    n_points: int


@dataclass(frozen=True)
class Exchange:
    """A permutation test: the energy `statistic`, its `p_value`, and how it was got.

    `scheme` is "texts" or "models", `units` what was exchanged (blocks of texts, or models), `method` "exact" when all
    `arrangements` were counted, else "monte-carlo" with so many random ones.
    """

    scheme: str
    statistic: float
    p_value: float
    units: int
    arrangements: int
    method: str


@dataclass(frozen=True)
class LayerExchange:
    """The test of one layer: `p_value` for it alone, `p_joint` corrected for all layers of the test."""

    layer: str
    statistic: float
    p_value: float
    p_joint: float


@dataclass(frozen=True)
class Exchanges:
    """The tests of all layers under common arrangements; `units`, `arrangements`, `method` as in `Exchange`."""

    layers: tuple[LayerExchange, ...]
    units: int
    arrangements: int
    method: str


@dataclass(frozen=True)
class ExchangeOptions:
    """How clouds are made and how many random arrangements are drawn; `blocks` is for `exchange_texts`."""

    pca: int = 50
    metric: str = "euclidean"
    engine: str = "auto"
    maxdim: int = 1
    blocks: int = 10
    arrangements: int = 999
    seed: int = 0


def exchange_texts(first: NDArray[np.floating], second: NDArray[np.floating], options: ExchangeOptions) -> Exchange:
    """Whether two layers (n, d) and (n, e), row i of both from text i, have the same shape on blocks of the texts.

    Texts are put into `options.blocks` blocks of n // blocks by a seeded shuffle. With so few as 13 blocks all swaps
    are counted.

    Raises:
        UsageError: different numbers of rows, or blocks of fewer than 8 texts or fewer than 5 blocks.
    """
    _check_pair(first, second)
    rows, groups, exact = _text_arrangements(len(first), options)
    distances = difference_matrix(_block_shapes(first, second, rows, options))
    observed, found = energies(distances, _own(len(rows))), energies(distances, groups)
    return _result("texts", float(observed[0]), found, len(rows), exact)


def exchange_texts_by_layer(
    layers: Iterable[tuple[str, NDArray[np.floating], NDArray[np.floating]]], options: ExchangeOptions
) -> Exchanges:
    """`exchange_texts` for every (name, first, second) of `layers`, all of the same n texts, with the same swaps.

    Raises:
        UsageError: as `exchange_texts`, or no layer.
    """
    names, observed, found, n = [], [], [], -1
    for name, first, second in layers:
        _check_pair(first, second)
        if n not in (-1, len(first)):
            raise UsageError(f"layers of {n} and {len(first)} texts cannot be tested together")
        n = len(first)
        rows, groups, exact = _text_arrangements(n, options)
        distances = difference_matrix(_block_shapes(first, second, rows, options))
        names.append(name)
        observed.append(energies(distances, _own(len(rows)))[0])
        found.append(energies(distances, groups))
    if not names:
        raise UsageError("the models have no layer in common")
    return _results(names, np.array(observed), np.array(found).T, len(rows), exact)


def _check_pair(first: NDArray[np.floating], second: NDArray[np.floating]) -> None:
    if len(first) != len(second):
        raise UsageError(f"{len(first)} and {len(second)} texts cannot be paired", "use the same texts for both")


def _text_arrangements(n: int, options: ExchangeOptions) -> tuple[NDArray[np.int64], NDArray[np.bool_], bool]:
    """The texts of every block (blocks, n // blocks), the groups after each way of swapping, and whether it is all."""
    blocks = options.blocks
    if blocks < MIN_BLOCKS or n // blocks < MIN_BLOCK:
        raise UsageError(
            f"{n} texts in {blocks} blocks are too few to exchange",
            f"at least {MIN_BLOCKS} blocks of {MIN_BLOCK} texts are needed",
        )
    rng = np.random.default_rng(options.seed)
    rows = rng.permutation(n)[: blocks * (n // blocks)].reshape(blocks, -1)
    exact = 2 ** (blocks - 1) <= EXACT_UP_TO
    swaps = _all_swaps(blocks) if exact else rng.random((options.arrangements, blocks)) < 0.5
    return rows, np.hstack([swaps, ~swaps]), exact


def _own(blocks: int) -> NDArray[np.bool_]:
    """The observed arrangement, (1, 2 blocks)."""
    return (np.arange(2 * blocks) >= blocks)[None, :]


def _block_shapes(
    first: NDArray[np.floating], second: NDArray[np.floating], rows: NDArray[np.int64], options: ExchangeOptions
) -> list[Shape]:
    return [shape_of_cloud(side[block], options) for side in (first, second) for block in rows]


def _all_swaps(blocks: int) -> NDArray[np.bool_]:
    """Every way of swapping, once: the last block stays, as swapping all of them changes nothing."""
    codes = np.arange(2 ** (blocks - 1))[:, None] >> np.arange(blocks)
    return (codes & 1).astype(np.bool_)


def exchange_models(
    first: Sequence[Mapping[str, Shape]], second: Sequence[Mapping[str, Shape]], options: ExchangeOptions
) -> Exchange:
    """Whether two groups of models come from one population. A model is its layers' shapes by name (`shapes_of`).

    Only layers that all models have count. All ways of choosing the first group are counted when these are fewer than
    10,000, else `options.arrangements` random ones.

    Raises:
        UsageError: an empty group, fewer than three models, no common layer, or different numbers of points.
    """
    models, common = _models(first, second)
    distances = np.asarray(sum(difference_matrix([model[name] for model in models]) for name in common))
    groups, exact = _model_arrangements(len(models), len(first), options)
    observed = energies(distances, _first_of(len(models), len(first)))
    return _result("models", float(observed[0]), energies(distances, groups), len(models), exact)


def exchange_models_by_layer(
    first: Sequence[Mapping[str, Shape]], second: Sequence[Mapping[str, Shape]], options: ExchangeOptions
) -> Exchanges:
    """`exchange_models` for every layer that all models have, with the same exchanges.

    Raises:
        UsageError: as `exchange_models`.
    """
    models, common = _models(first, second)
    groups, exact = _model_arrangements(len(models), len(first), options)
    own = _first_of(len(models), len(first))
    matrices = [difference_matrix([model[name] for model in models]) for name in common]
    observed = np.array([energies(matrix, own)[0] for matrix in matrices])
    found = np.array([energies(matrix, groups) for matrix in matrices]).T
    return _results(common, observed, found, len(models), exact)


def _models(
    first: Sequence[Mapping[str, Shape]], second: Sequence[Mapping[str, Shape]]
) -> tuple[list[Mapping[str, Shape]], list[str]]:
    """All models, and the layers that every one of them has."""
    models = [*first, *second]
    if not first or not second or len(models) < 3:
        raise UsageError(
            f"groups of {len(first)} and {len(second)} models cannot be exchanged", "give at least 1 and 2"
        )
    common = [name for name in models[0] if all(name in model for model in models)]
    if not common:
        raise UsageError("the models have no layer in common")
    return models, common


def _model_arrangements(n: int, k: int, options: ExchangeOptions) -> tuple[NDArray[np.bool_], bool]:
    """Which of `n` models form the first group of `k`, one row per arrangement, and whether these are all of them."""
    exact = comb(n, k) <= EXACT_UP_TO
    chosen = list(combinations(range(n), k)) if exact else _random_groups(n, k, options)
    groups = np.zeros((len(chosen), n), dtype=np.bool_)
    np.put_along_axis(groups, np.array(chosen), True, axis=1)
    return groups, exact


def _first_of(n: int, k: int) -> NDArray[np.bool_]:
    return (np.arange(n) < k)[None, :]


def _random_groups(n: int, k: int, options: ExchangeOptions) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(options.seed)
    return [tuple(rng.choice(n, k, replace=False).tolist()) for _ in range(options.arrangements)]


def _result(scheme: str, observed: float, found: Array, units: int, exact: bool) -> Exchange:
    p = _share(found >= observed - SLACK, exact)
    return Exchange(scheme, observed, float(p), units, len(found), "exact" if exact else "monte-carlo")


def _share(hits: NDArray[np.bool_], exact: bool) -> Array:
    """p-values along the first axis: all arrangements include the observed one; random ones are counted with it.

    Phipson, Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010.
    """
    extra = 0 if exact else 1
    p: Array = (hits.sum(axis=0) + extra) / (len(hits) + extra)
    return p


def _results(names: Sequence[str], observed: Array, found: Array, units: int, exact: bool) -> Exchanges:
    """The p-values of L layers from `observed` (L,) and the arrangements' statistics `found` (A, L)."""
    everything = found if exact else np.vstack([observed, found])
    spread = everything.std(axis=0)
    unit = np.where(spread > SLACK, spread, np.inf)  # a layer that no exchange changes decides nothing
    highest = ((found - everything.mean(axis=0)) / unit).max(axis=1)
    standard = (observed - everything.mean(axis=0)) / unit
    alone = _share(found >= observed - SLACK, exact)
    joint = _share(highest[:, None] >= standard - SLACK, exact)
    layers = tuple(
        LayerExchange(name, float(statistic), float(p), float(max(p, corrected)))
        for name, statistic, p, corrected in zip(names, observed, alone, joint, strict=True)
    )
    return Exchanges(layers, units, len(found), "exact" if exact else "monte-carlo")


def shape_of_cloud(x: NDArray[np.floating], options: ExchangeOptions) -> Shape:
    """The shape of the cloud of activations `x` (n, d)."""
    cloud = make_cloud(x, options.pca, options.metric)
    distances = space_of("block", cloud.points, options.metric).condensed()
    unit = scale(distances, cloud.multiplicity) or 1.0
    engine = choose_engine(options.engine, max(options.maxdim, 1)).name
    return Shape(tuple(bars / unit for bars in bars_of(distances, min(options.maxdim, 1), engine)), len(x))


def shapes_of(layers: Sequence[LayerTopology]) -> dict[str, Shape]:
    """The shapes of analysed layers by name, from their diagrams."""
    return {
        layer.name: Shape(tuple(d.pairs / (layer.scale or 1.0) for d in layer.diagrams), layer.n_points)
        for layer in layers
    }


def difference_matrix(shapes: Sequence[Shape]) -> Array:
    """Pairwise `difference`s of clouds of equally many points.

    Raises:
        UsageError: the clouds have different numbers of points, on which Betti curves depend.
    """
    sizes = sorted({shape.n_points for shape in shapes})
    if len(sizes) > 1:
        raise UsageError(f"clouds of {sizes[0]} and {sizes[-1]} points cannot be compared", "use the same texts")
    matrix = np.zeros((len(shapes), len(shapes)))
    for i, j in combinations(range(len(shapes)), 2):
        matrix[i, j] = matrix[j, i] = difference(shapes[i], shapes[j])
    return matrix


def difference(first: Shape, second: Shape) -> float:
    """Integral of |beta - beta'| over distance / scale, summed over common dimensions, per point."""
    pairs = zip(first.bars, second.bars, strict=False)
    return sum(betti_l1(a, b) for a, b in pairs) / max(first.n_points, 1)


def betti_l1(first: Array, second: Array) -> float:
    """Integral of |beta(t) - beta'(t)| dt of the finite bars `first` (k, 2) and `second` (l, 2), exactly."""
    at = np.concatenate([first[:, 0], second[:, 1], first[:, 1], second[:, 0]])
    if not len(at):
        return 0.0
    ups = len(first) + len(second)
    step = np.concatenate([np.ones(ups), -np.ones(len(at) - ups)])
    order = np.argsort(at, kind="stable")
    height = np.cumsum(step[order])
    return float(np.abs(height[:-1]) @ np.diff(at[order]))


def energies(distances: Array, groups: NDArray[np.bool_]) -> Array:
    """2 E d(X, Y) - E d(X, X') - E d(Y, Y') over members and others of every group (A, N), from (N, N) `distances`."""
    member = groups.astype(np.float64)
    k = member.sum(axis=1)
    m = len(distances) - k
    inside = np.einsum("ai,ai->a", member @ distances, member)
    across = member @ distances.sum(axis=1) - inside
    outside = distances.sum() - inside - 2 * across
    energy: Array = 2 * across / (k * m) - inside / k**2 - outside / m**2
    return energy
