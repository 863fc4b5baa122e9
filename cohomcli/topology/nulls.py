"""Null models: clouds that a layer's cloud would look like if it had no structure beyond what the null keeps.

A new null is one decorated function: it prepares a cloud and returns a function that draws one replicate of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.fft import dct, idct

from cohomcli.registry import Registry
from cohomcli.topology.results import Array

Draw = Callable[[], Array]
Null = Callable[[Array, np.random.Generator], Draw]
NULLS = Registry("null model")
"""Null models by name.

Each takes (n, k) float64 points and a generator, and returns a function that draws an (n, k) replicate.
"""
NO_NULL = "none"


@NULLS.register("rotation")
def rotation(points: Array, rng: np.random.Generator) -> Draw:
    """Gaussian clouds with exactly the mean and the covariance of `points`, by rotating the space of texts.

    For n independent rows of one Gaussian, of any mean and covariance, the centred matrix X and RX have the same law
    for every orthogonal R that fixes the vector of ones, and (RX)'(RX) = X'X: conditionally on mean and covariance the
    replicates and the data are exchangeable, so that Monte-Carlo p-values are exact (rotation tests: Wedderburn 1975;
    Langsrud, Statistics and Computing 15, 2005). Principal axes depend on X'X only, so PCA before the rotation is PCA
    after it. R is drawn uniformly from the signed permutations of the cosine basis of the rows in a fixed random
    order, a finite group of such matrices; uniform draws from a subgroup keep the test exact (Hemerik, Goeman, TEST 27,
    2018) and take O(n k log n). Layers of equally many points draw the same R from the same seed, as the joint test of
    all layers needs.
    """
    order = rng.permutation(len(points))
    mean = points.mean(axis=0)
    waves = dct(points[order] - mean, axis=0, norm="ortho")[1:]

    def draw() -> Array:
        signs = rng.integers(0, 2, len(waves)) * 2.0 - 1.0
        turned = np.zeros_like(points)
        turned[1:] = waves[rng.permutation(len(waves))] * signs[:, None]
        rotated: Array = idct(turned, axis=0, norm="ortho") + mean
        return rotated

    return draw


@NULLS.register("gaussian")
def gaussian(points: Array, rng: np.random.Generator) -> Draw:
    """Fresh samples of the Gaussian with the sample mean and sample covariance of `points`.

    The parametric bootstrap: a replicate's own covariance scatters around the one it was drawn with, which already
    scatters around the truth, so p-values are approximate; `rotation` has no such error.
    """
    mean = points.mean(axis=0)
    _, lengths, axes = np.linalg.svd(points - mean, full_matrices=False)
    spread = lengths[:, None] * axes / np.sqrt(max(len(points) - 1, 1))

    def draw() -> Array:
        sample: Array = rng.standard_normal((len(points), len(lengths))) @ spread + mean
        return sample

    return draw


@NULLS.register("column")
def column(points: Array, rng: np.random.Generator) -> Draw:
    """Every coordinate (after PCA: every principal component) permuted over the texts on its own.

    Keeps all marginal distributions and destroys all dependence. Exact where the coordinates are independent; after
    PCA they are uncorrelated in the sample, which the replicates are only on average, so p-values are approximate.
    """

    def draw() -> Array:
        return rng.permuted(points, axis=0)

    return draw
