"""The data of the interactive view: complete, counted, small, and harmless inside a script element."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from sampleresults import HOSTILE_NAMES, entry, layer, layers, noisy_circle, renamed, topology

from cohomcli.report.build import ReportContext, build
from cohomcli.report.explorer import MOST_BARS, explorer_of
from cohomcli.topology.results import BettiCurve, LayerTopology


def data_of(*shown: LayerTopology) -> dict:
    explorer = explorer_of(shown)
    assert explorer is not None
    return json.loads(explorer.data)


def test_every_bar_is_there_in_units_of_the_scale_longest_first() -> None:
    item = layer("layer_0", 7.0 * noisy_circle(60, 4, 0.2, 1), maxdim=2)
    (shown,) = data_of(item)["layers"]
    for bars, diagram in zip(shown["bars"], item.diagrams, strict=True):
        expected = sorted((diagram.pairs / item.scale).tolist(), key=lambda pair: pair[0] - pair[1])
        found = [
            [birth, death]
            for birth, death, count in zip(bars["births"], bars["deaths"], bars["counts"], strict=True)
            for _ in range(count)
        ]
        assert bars["total"] == len(diagram.pairs) == sum(bars["counts"])
        assert np.allclose(sorted(found), sorted(expected), rtol=6e-4)
        lifetimes = [death - birth for birth, death in found]
        assert lifetimes == sorted(lifetimes, reverse=True) or max(np.diff(lifetimes)) < 2e-3
    assert shown["bars"][0]["essential"] == [0.0]
    assert [bars["dimension"] for bars in shown["bars"]] == [0, 1, 2]


def test_equal_bars_are_one_with_a_count() -> None:
    grid = np.array([[i, j] for i in range(6) for j in range(6)], dtype=float)
    (shown,) = data_of(layer("layer_0", grid))["layers"]
    assert shown["bars"][0]["counts"] == [35]
    assert shown["bars"][1]["counts"] == [25]


def test_betti_curves_keep_every_step() -> None:
    item = layer("layer_0", noisy_circle(40, 3, 0.1, 2))
    (shown,) = data_of(item)["layers"]
    at, values = np.array(shown["betti"]["at"]), np.array(shown["betti"]["values"])
    for t, expected in zip(item.betti.grid / item.scale, item.betti.values.T, strict=True):
        k = np.flatnonzero(at <= t * (1 + 6e-4) + 1e-12)[-1]
        near = values[:, max(k - 1, 0) : k + 2].T.tolist()
        assert expected.tolist() in near
    assert len(at) < len(item.betti.grid)


def test_layers_without_shape_are_left_out() -> None:
    flat = replace(layer("embedding", np.ones((5, 2))), betti=BettiCurve(np.empty(0), np.empty((2, 0), np.int64)))
    assert explorer_of([flat]) is None
    assert [item["name"] for item in data_of(flat, layers(3)[1])["layers"]] == [layers(3)[1].name]


def test_no_name_ends_the_script_element() -> None:
    explorer = explorer_of(renamed([*HOSTILE_NAMES, "</script><!--<script>"]))
    assert explorer is not None
    assert not set("<>&") & set(explorer.data)
    assert explorer.data.isascii()


def test_many_bars_are_cut_to_the_longest_and_the_total_is_told() -> None:
    base = layer("layer_0", noisy_circle(20, 3, 0.1, 3))
    rng = np.random.default_rng(0)
    births = np.sort(rng.uniform(0, 1, 3 * MOST_BARS))
    pairs = np.column_stack([births, births + rng.exponential(1, len(births))])
    (shown,) = data_of(replace(base, scale=1.0, diagrams=(replace(base.diagrams[1], pairs=pairs),)))["layers"]
    (bars,) = shown["bars"]
    assert bars["total"] == 3 * MOST_BARS
    assert sum(bars["counts"]) == MOST_BARS
    shortest = min(death - birth for birth, death in zip(bars["births"], bars["deaths"], strict=True))
    assert shortest >= np.sort(pairs[:, 1] - pairs[:, 0])[-MOST_BARS] - 2e-3


def test_thirteen_layers_of_five_hundred_points_stay_below_five_megabytes(tmp_path) -> None:
    one = layer("layer_0", np.random.default_rng(0).normal(size=(500, 12)))
    many = [replace(one, name=name) for name in ("embedding", *(f"layer_{k}" for k in range(11)), "final_norm")]
    context = ReportContext("run", ("cohom", "run"), "0.1.0", "cohom run")
    build([entry(topology=topology(many))], None, tmp_path, context)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
