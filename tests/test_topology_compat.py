"""The compat mode against figures that ToDACoMM 0.1.0 itself computed (tests/vectors/todacomm.json)."""

import json
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from cohomcli.topology.analysis import analyze_layers
from cohomcli.topology.compat import TodacommOptions, as_bars, summarize_todacomm, todacomm_figures
from cohomcli.topology.persistence import rips
from cohomcli.topology.results import TopologyOptions

VECTORS = json.loads((Path(__file__).parent / "vectors" / "todacomm.json").read_text())


@pytest.fixture(autouse=True)
def one_blas_thread():
    with threadpool_limits(1):
        yield


def polygon(n):
    angles = 2 * np.pi * np.arange(n) / n
    return np.column_stack([np.cos(angles), np.sin(angles)])


def normal(seed, *shape):
    return np.random.RandomState(seed).randn(*shape)


INPUTS = {
    "one point": lambda: np.zeros((1, 2)),
    "two points": lambda: np.array([[0.0, 0], [3, 0]]),
    "unit square": lambda: np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]),
    "collinear": lambda: np.array([[0.0], [1], [3]]),
    "12-gon": lambda: polygon(12),
    "100-gon": lambda: polygon(100),
    "identical": lambda: np.zeros((5, 3)),
    "duplicates": lambda: np.repeat(np.arange(5.0)[:, None], 2, axis=0),
    "RS(0).randn(50,3).astype(float32)": lambda: normal(0, 50, 3).astype(np.float32),
    "RS(42).randn(100,50).astype(float32)": lambda: normal(42, 100, 50).astype(np.float32),
    "RS(42).randn(75,50).astype(float32)": lambda: normal(42, 75, 50).astype(np.float32),
    "RS(0).randn(200,768).astype(float32)": lambda: normal(0, 200, 768).astype(np.float32),
    "RS(42).randn(30,768).astype(float32)": lambda: normal(42, 30, 768).astype(np.float32),
    "RS(0).randn(500,768).astype(float32)": lambda: normal(0, 500, 768).astype(np.float32),
    "uniform 500 of 600": lambda: normal(0, 600, 10).astype(np.float32),
    "multiscale": lambda: normal(0, 600, 10).astype(np.float32),
    "adaptive": lambda: normal(0, 600, 10).astype(np.float32),
    "cosine": lambda: normal(1, 50, 10),
    "maxdim2": lambda: normal(1, 40, 3),
    "pca5": lambda: normal(1, 40, 10),
}


def test_every_vector_has_an_input():
    assert [vector["name"] for vector in VECTORS["summary"]] == list(INPUTS)


@pytest.mark.parametrize("vector", VECTORS["summary"], ids=lambda vector: vector["name"])
def test_source_figures(vector):
    config = vector["config"]
    options = TodacommOptions(
        pca=config["pca_components"],
        maxdim=config["maxdim"],
        metric=config["metric"],
        sampling=config["sampling_strategy"],
        max_points=config["max_points"],
        seed=vector["seed"],
    )
    figures = todacomm_figures(INPUTS[vector["name"]](), options)
    assert figures == pytest.approx(vector["summary"], rel=1e-5)
    counts = [key for key in figures if key.endswith("count")]
    assert [figures[key] for key in counts] == [vector["summary"][key] for key in counts]


def test_source_summary_of_given_diagrams():
    vector = VECTORS["summarize_diagrams"]
    diagrams = [np.array([[float(b), float(d)] for b, d in bars]) for bars in vector["input"]]
    assert summarize_todacomm(diagrams) == vector["output"]


def test_an_essential_class_is_one_unit_of_artefact():
    h0 = rips(np.array([[0.0], [1.0], [1.5]]))[0]
    assert summarize_todacomm([as_bars(h0)])["H0_total_persistence"] == h0.pairs[:, 1].sum() + 1.0


def test_compat_mode_fills_every_layer_and_the_source_ratio():
    layers = {"embedding": normal(0, 30, 3), "layer_0": 4 * normal(1, 30, 3), "final_norm": 9 * normal(2, 30, 3)}
    result = analyze_layers({k: v.astype(np.float32) for k, v in layers.items()}, TopologyOptions(compat="todacomm"))
    figures = [layer.compat for layer in result.layers]
    expected = [todacomm_figures(x.astype(np.float32), TodacommOptions()) for x in layers.values()]
    assert figures == expected
    totals = [figure["H0_total_persistence"] for figure in expected]
    assert result.expansion.compat == totals[1] / totals[0]
    assert analyze_layers({"a": layers["embedding"]}, TopologyOptions()).layers[0].compat is None
