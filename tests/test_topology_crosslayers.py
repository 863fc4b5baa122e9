"""Layers of one model against layers of another: values, the nearest layer, and what cannot be compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from sampleresults import layers

from cohomcli.report.plots_cross import draw_cross
from cohomcli.topology.crosslayers import MOST_PAIRS, cross_layers
from cohomcli.topology.drift import DIAGRAMS, Subject, representation_drift
from cohomcli.topology.measures import MEASURES
from cohomcli.topology.results import Array


@dataclass(frozen=True)
class Stored:
    """Activations by layer."""

    arrays: dict[str, Array]

    def layer(self, name: str) -> Array:
        return self.arrays[name]


def subject(row: int, n_layers: int, seed: int, sample: str = "texts") -> Subject:
    """Layers that drift from the first along a random walk, turned and rescaled."""
    rng = np.random.default_rng(3)
    x, found = rng.standard_normal((30, 6)), {}
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))[0]
    for layer in layers(n_layers):
        found[layer.name] = 3.0 * (x @ turn)
        x = x + 0.7 * rng.standard_normal(x.shape)
    return Subject(row, f"{sample}/last", tuple(layers(n_layers)), Stored(found), sample)


def test_values_are_the_measure_and_the_nearest_layer_is_found() -> None:
    one, other = subject(0, 5, 1), subject(1, 5, 2)
    (found,) = cross_layers([one, other], [(0, 1)], "cka")
    assert found.layers == found.others == tuple(layer.name for layer in one.layers)
    for i, name in enumerate(found.layers):
        for j, against in enumerate(found.others):
            expected = MEASURES.get("cka")(one.activations.layer(name), other.activations.layer(against))
            assert found.values[i][j] == pytest.approx(expected)
    assert found.matched == found.layers  # the same walk up to rotation and scale
    drift = representation_drift(
        one.activations.layer("layer_0"), other.activations.layer("layer_0"), MEASURES.get("cka")
    )
    at = found.layers.index("layer_0")
    assert 1 - found.values[at][at] == pytest.approx(drift, abs=1e-12)


def test_models_of_other_depth_and_an_unbounded_measure() -> None:
    (found,) = cross_layers([subject(0, 3, 1), subject(1, 6, 2)], [(0, 1)], "rtd-lite")
    assert (len(found.values), len(found.values[0]), found.kind) == (3, 6, "divergence")
    assert found.matched[0] == found.others[0]
    assert draw_cross([found], ["a", "b"]) is not None


def test_what_cannot_be_compared_says_why() -> None:
    one, strange = subject(0, 3, 1), subject(1, 3, 2, "others")
    bare = Subject(2, "texts/last", one.layers, None, "texts")
    still = Subject(
        3, "texts/last", one.layers, Stored(dict.fromkeys((x.name for x in one.layers), np.ones((30, 2)))), "texts"
    )
    found = cross_layers([one, strange, bare, still], [(1, 0), (2, 0), (3, 0), (0, None)], "cka")
    assert [cross.reason for cross in found] == ["not the same texts", "a run keeps no activations", ""]
    assert {value for row in found[2].values for value in row} == {None}
    assert found[2].matched == (None,) * 3
    beside = Subject(1, "texts/last", one.layers, None, "texts")
    (diagrams,) = cross_layers([one, beside], [(1, 0)], DIAGRAMS)
    assert [row[i] for i, row in enumerate(diagrams.values)] == [0.0] * 3


def test_a_report_gets_no_more_than_a_few_matrices() -> None:
    subjects = [subject(row, 2, row) for row in range(MOST_PAIRS + 3)]
    assert len(cross_layers(subjects, [(row, 0) for row in range(1, len(subjects))], "cka")) == MOST_PAIRS
