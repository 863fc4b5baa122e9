"""The deterministic pairs of clouds on which the authors of RTD and of SRTD published their figures."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
N_RINGS = 5
CLUSTERS = (2, 3, 4, 5, 6, 10, 12)


def rings(n_equal: int) -> Array:
    """Five rings of 100 points: `n_equal` of radius 1, then 1.25, 0.75, 1.5, 0.5 (IlyaTrofimov/RTD, Rings.ipynb)."""
    angles = 2 * np.pi * np.arange(100) / 100
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    others = [1 + 0.25 * (at // 2 + 1) * (1 if at % 2 == 0 else -1) for at in range(N_RINGS - n_equal)]
    return np.concatenate([radius * circle for radius in [1.0] * n_equal + others])


def groups(seed: int) -> list[Array]:
    """60 groups of 5 normal points in the plane, by numpy's legacy generator (Clusters.ipynb has seed 7)."""
    rng = np.random.RandomState(seed)
    return [rng.multivariate_normal(np.zeros(2), np.eye(2), 5) for _ in range(60)]


def one_cluster(seed: int) -> Array:
    """All groups where they are."""
    return np.concatenate(groups(seed))


def many_clusters(seed: int, k: int) -> Array:
    """The groups moved in turn to k places on a circle of radius 10."""
    angles = 2 * np.pi * (np.arange(60) % k) / k
    places = 10 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([group + place for group, place in zip(groups(seed), places, strict=True)])
