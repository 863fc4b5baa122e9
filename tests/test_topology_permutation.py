"""Permutation tests between layers and models, against closed forms, other libraries and models that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from cohomcli.data.sample import load_texts
from cohomcli.data.spec import DatasetSpec
from cohomcli.errors import UsageError
from cohomcli.models.activations import collect
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import ActivationOptions, LoadOptions
from cohomcli.topology.analysis import analyze_layers
from cohomcli.topology.permutation import (
    ExchangeOptions,
    Shape,
    betti_l1,
    difference,
    energies,
    exchange_models,
    exchange_models_by_layer,
    exchange_texts,
    exchange_texts_by_layer,
    shape_of_cloud,
    shapes_of,
)
from cohomcli.topology.results import Array, TopologyOptions

OPTIONS = ExchangeOptions()


def gaussian(seed: int, n: int, width: int = 6) -> Array:
    return np.random.default_rng(seed).standard_normal((n, width))


def ring(seed: int, n: int) -> Array:
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.column_stack([np.cos(angle), np.sin(angle)]) + 0.02 * rng.standard_normal((n, 2))


def test_l1_of_betti_curves_is_wasserstein_for_bars_born_at_zero() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.uniform(1, 2, 9), rng.uniform(1, 3, 9)
    as_bars = [np.column_stack([np.zeros(9), deaths]) for deaths in (first, second)]
    assert betti_l1(*as_bars) == pytest.approx(9 * wasserstein_distance(first, second))


def test_l1_of_betti_curves_by_integration() -> None:
    rng = np.random.default_rng(1)
    bars = [np.sort(rng.uniform(0, 1, (k, 2)), axis=1) for k in (7, 4)]
    grid = (np.arange(200_000) + 0.5) / 200_000
    curves = [((b[:, :1] <= grid) & (grid < b[:, 1:])).sum(axis=0) for b in bars]
    assert betti_l1(*bars) == pytest.approx(np.abs(curves[0] - curves[1]).mean(), abs=1e-3)
    assert betti_l1(bars[0], bars[0]) == 0.0
    assert betti_l1(np.zeros((0, 2)), np.zeros((0, 2))) == 0.0
    assert betti_l1(bars[0], np.zeros((0, 2))) == pytest.approx((bars[0][:, 1] - bars[0][:, 0]).sum())


def test_shapes_do_not_change_with_scale_rotation_or_width() -> None:
    x = gaussian(2, 30)
    turn = np.linalg.qr(gaussian(3, 6))[0]
    wide = np.hstack([7.0 * x @ turn, np.zeros((30, 4))])
    assert difference(shape_of_cloud(x, OPTIONS), shape_of_cloud(wide, OPTIONS)) == pytest.approx(0, abs=1e-5)


def test_shapes_of_diagrams_are_those_of_the_cloud() -> None:
    x = gaussian(4, 25).astype(np.float32)
    from_layers = shapes_of(analyze_layers({"a": x}, TopologyOptions()).layers)["a"]
    assert difference(from_layers, shape_of_cloud(x, OPTIONS)) == pytest.approx(0, abs=1e-5)


def test_exchange_of_texts_counts_every_swap_once() -> None:
    found = exchange_texts(gaussian(5, 100), ring(6, 100), OPTIONS)
    assert (found.units, found.arrangements, found.method) == (10, 512, "exact")
    assert found.p_value == 1 / 512
    many = exchange_texts(gaussian(5, 320), ring(6, 320), replace(OPTIONS, blocks=20, arrangements=199))
    assert (many.method, many.p_value) == ("monte-carlo", 1 / 200)


def test_exchange_of_equal_layers_finds_nothing() -> None:
    x = gaussian(7, 100)
    same = exchange_texts(x, 3.0 * x, OPTIONS)
    assert same.p_value == 1.0
    assert same.statistic == pytest.approx(0, abs=1e-6)


def test_exchange_of_texts_keeps_its_level() -> None:
    """Independent clouds of one law, in pairs: at most the binomial share is called different at 10%."""
    p = [
        exchange_texts(gaussian(seed, 40), gaussian(10_000 + seed, 40), replace(OPTIONS, blocks=5)).p_value
        for seed in range(100)
    ]
    assert sum(value <= 0.125 for value in p) <= 26  # 5 blocks: p is a multiple of 1/16; P(Bin(100, 1/8) > 26) < 1e-4


def test_one_model_against_others_is_its_rank() -> None:
    others = [{"a": shape_of_cloud(gaussian(seed, 40), OPTIONS)} for seed in range(12)]
    stranger = {"a": shape_of_cloud(ring(99, 40), OPTIONS)}
    assert exchange_models([stranger], others, OPTIONS).p_value == 1 / 13
    p = [exchange_models([others[i]], others[:i] + others[i + 1 :], OPTIONS).p_value for i in range(12)]
    assert sorted(p) == pytest.approx([k / 12 for k in range(1, 13)])
    groups = exchange_models(others[:4], [stranger, *others[4:7]], replace(OPTIONS, arrangements=50))
    assert (groups.arrangements, groups.method) == (70, "exact")


def test_energies_by_their_definition() -> None:
    rng = np.random.default_rng(8)
    distances = rng.uniform(0, 1, (7, 7))
    distances = distances + distances.T
    np.fill_diagonal(distances, 0)
    groups = np.array([[1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0, 1], [0, 1, 0, 1, 0, 0, 0]], dtype=bool)
    for group, found in zip(groups, energies(distances, groups), strict=True):
        inside, outside = distances[group][:, group], distances[~group][:, ~group]
        expected = 2 * distances[group][:, ~group].mean() - inside.mean() - outside.mean()
        assert found == pytest.approx(expected)


def test_layers_under_common_swaps_are_the_single_tests_with_a_correction() -> None:
    pairs = [("same", gaussian(1, 60), gaussian(2, 60)), ("ring", gaussian(3, 60), ring(4, 60))]
    options = replace(OPTIONS, blocks=6)
    found = exchange_texts_by_layer(pairs, options)
    assert (found.units, found.arrangements, found.method) == (6, 32, "exact")
    for layer, (_, x, y) in zip(found.layers, pairs, strict=True):
        single = exchange_texts(x, y, options)
        assert (layer.p_value, layer.statistic) == (single.p_value, pytest.approx(single.statistic))
        assert layer.p_joint >= layer.p_value
    assert found.layers[1].p_joint == 1 / 32
    (alone,) = exchange_texts_by_layer(pairs[:1], options).layers
    assert alone.p_joint == alone.p_value
    equal = exchange_texts_by_layer([("a", gaussian(1, 60), gaussian(1, 60)), pairs[1]], options)
    assert [layer.p_joint for layer in equal.layers] == [1.0, 1 / 32]


def test_the_correction_for_layers_keeps_the_level() -> None:
    """Three layers of independent clouds of one law: the smallest corrected p is at most 1/8 in 1/8 of cases."""
    options = replace(OPTIONS, blocks=5)
    smallest = []
    for seed in range(60):
        layers = [(str(k), gaussian(100 * seed + k, 40), gaussian(100 * seed + 50 + k, 40)) for k in range(3)]
        smallest.append(min(layer.p_joint for layer in exchange_texts_by_layer(layers, options).layers))
    assert sum(p <= 0.125 for p in smallest) <= 18  # P(Bin(60, 1/8) > 18) < 1e-4


def test_models_by_layer_are_ranks_with_a_correction() -> None:
    others = [
        {k: shape_of_cloud(gaussian(10 * seed + i, 40), OPTIONS) for i, k in enumerate("ab")} for seed in range(9)
    ]
    stranger = {"a": shape_of_cloud(gaussian(999, 40), OPTIONS), "b": shape_of_cloud(ring(99, 40), OPTIONS)}
    a, b = exchange_models_by_layer([stranger], others, OPTIONS).layers
    assert (b.p_value, b.p_joint) == (1 / 10, 1 / 10)
    assert a.p_value == exchange_models([{"a": stranger["a"]}], others, OPTIONS).p_value
    assert a.p_joint >= a.p_value


def test_what_cannot_be_exchanged_is_refused() -> None:
    shape = {"a": Shape((np.zeros((0, 2)),), 10)}
    with pytest.raises(UsageError, match="paired"):
        exchange_texts(gaussian(0, 50), gaussian(0, 60), OPTIONS)
    with pytest.raises(UsageError, match="too few"):
        exchange_texts(gaussian(0, 50), gaussian(1, 50), OPTIONS)
    with pytest.raises(UsageError, match="groups"):
        exchange_models([shape], [shape], OPTIONS)
    with pytest.raises(UsageError, match="in common"):
        exchange_models([shape], [shape, {"b": shape["a"]}], OPTIONS)
    with pytest.raises(UsageError, match="same texts"):
        exchange_models([shape], [shape, {"a": Shape((np.zeros((0, 2)),), 11)}], OPTIONS)


def test_trained_and_untrained_tiny_gpt_are_told_apart_and_two_seeds_are_not() -> None:
    texts = load_texts(DatasetSpec("builtin"), 50, 0).texts
    loaded = load(resolve("tiny-gpt"), LoadOptions())
    models = [loaded]
    for seed in range(19):
        torch.manual_seed(seed)
        models.append(replace(loaded, model=type(loaded.model)(loaded.model.config).eval()))
    options = ActivationOptions(perplexity=False, max_length=24)
    shapes = [
        {name: shape_of_cloud(x, OPTIONS) for name, x in collect(model, texts, options).layers.items()}
        for model in models
    ]
    trained, untrained = shapes[0], shapes[1:]
    assert exchange_models([trained], untrained, OPTIONS).p_value == 1 / 20
    assert exchange_models(untrained[:1], untrained[1:], OPTIONS).p_value > 0.05
    assert exchange_models(untrained[:9], untrained[9:], replace(OPTIONS, arrangements=199)).p_value > 0.05
