"""Attention graphs against networkx and the formulas of the paper's code, and weights taken from real models."""

import gudhi
import networkx as nx
import numpy as np
import pytest
import torch
from scipy.stats import entropy
from tinymodels import PICO
from tinymodels import loaded as pico

from cohomcli.errors import AnalysisIncomplete, InputRefused
from cohomcli.models.attentions import attention_maps
from cohomcli.models.layout import find_stacks
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadedModel, LoadOptions
from cohomcli.topology.attention import THRESHOLDS, attention_topology, graph_figures, head_topology
from cohomcli.topology.results import Array

TEXTS = ("To be, or not to be, that is the question.", "Out, damned spot! out, I say!", "Now is the winter of our")


def _weights(seed: int, n: int = 14, causal: bool = False) -> Array:
    logits = 3 * np.random.default_rng(seed).normal(size=(n, n))
    if causal:
        logits[np.triu_indices(n, 1)] = -np.inf
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_graphs_equal_networkx(threshold: float, causal: bool) -> None:
    weights = _weights(1, causal=causal)
    graph = nx.from_numpy_array((weights >= threshold).astype(int), create_using=nx.DiGraph)
    plain = nx.Graph(graph.to_undirected())
    found = graph_figures(weights, threshold)
    assert found.edges == graph.number_of_edges()
    assert found.strong == nx.number_strongly_connected_components(graph)
    assert found.weak == nx.number_weakly_connected_components(graph) == nx.number_connected_components(plain)
    assert found.degree == pytest.approx(np.mean([degree for _, degree in graph.degree()]))
    assert found.loops == plain.number_of_edges() - plain.number_of_nodes() + nx.number_connected_components(plain)


@pytest.mark.parametrize("seed", range(3))
def test_bars_equal_gudhi_on_the_matrix_of_the_papers_code(seed: int) -> None:
    weights = _weights(seed, 18, causal=seed == 1)
    matrix = 1.0 - (weights > 1e-3) * weights
    np.fill_diagonal(matrix, 0.0)
    matrix = np.minimum(matrix.T, matrix)
    tree = gudhi.RipsComplex(distance_matrix=matrix).create_simplex_tree(max_dimension=2)
    tree.compute_persistence()
    found = head_topology("layer_0", 0, weights)
    for k, figures in enumerate((found.h0, found.h1)):
        bars = tree.persistence_intervals_in_dimension(k)
        lengths = np.array([d - b for b, d in bars if np.isfinite(d) and d > b])
        assert figures.count == len(lengths)
        assert (figures.total, figures.mean, figures.deviation) == pytest.approx(
            (lengths.sum(), lengths.mean(), lengths.std()), rel=1e-9
        )
        assert figures.entropy == pytest.approx(entropy(lengths), rel=1e-9)
        longest = bars[np.isfinite(bars[:, 1])][np.argmax(lengths)] if k else (0.0, lengths.max())
        assert (figures.longest_birth, figures.longest_death) == pytest.approx(tuple(longest), abs=1e-9)


def test_patterns_are_recognised() -> None:
    n = 9
    first = np.zeros((n, n))
    first[:, 0] = 1.0
    previous = np.eye(n, k=-1)
    previous[0, 0] = 1.0
    assert head_topology("a", 0, np.eye(n)).patterns.to_self == 0
    assert head_topology("a", 0, first).patterns.to_first == 0
    found = head_topology("a", 0, previous).patterns
    assert found.to_previous == pytest.approx(1 / np.sqrt(2 * n - 1))
    assert found.to_previous < min(found.to_self, found.to_next, found.to_first)


def test_a_ring_of_attention_is_a_loop_and_a_star_is_none() -> None:
    n = 8
    ring = 0.5 * (np.eye(n) + np.roll(np.eye(n), 1, axis=1))
    star = np.zeros((n, n))
    star[:, 0] = 1.0
    assert (head_topology("a", 0, ring).h1.count, head_topology("a", 0, star).h1.count) == (1, 0)
    assert head_topology("a", 0, star).h0.total == 0  # all joined at once: no bar of positive length


def test_figures_are_means_over_texts_of_different_lengths() -> None:
    one, other = _weights(1, 6), _weights(2, 11)
    maps = [{"layer_0": one[None]}, {"layer_0": np.ones((1, 1, 1))}, {"layer_0": other[None]}]
    found = attention_topology(maps)
    assert found is not None
    assert (found.n_texts, found.n_tokens, len(found.heads)) == (2, 17, 1)
    alone = [head_topology("layer_0", 0, weights) for weights in (one, other)]
    assert found.heads[0].h1.total == pytest.approx(np.mean([head.h1.total for head in alone]))
    assert found.heads[0].graph[2].edges == pytest.approx(np.mean([head.graph[2].edges for head in alone]))
    assert found.heads[0].graph[2].threshold == THRESHOLDS[2]


def test_texts_of_one_token_have_no_graph() -> None:
    assert attention_topology([{"layer_0": np.ones((2, 1, 1))}]) is None
    assert attention_topology([]) is None


@pytest.fixture(scope="module", params=["tiny-gpt", "tiny-bert"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return load(resolve(request.param), LoadOptions())


def test_weights_are_those_that_reproduce_the_layers_output(loaded: LoadedModel) -> None:
    """Rows add up to 1, causal models look back only, and the model is left as it was."""
    before = loaded.model.config._attn_implementation
    maps = list(attention_maps(loaded, TEXTS, 32))
    assert loaded.model.config._attn_implementation == before
    assert len(maps) == len(TEXTS)
    for text in maps:
        assert list(text) == [f"layer_{at}" for at in range(loaded.info.n_layer)]
        for weights in text.values():
            assert weights.sum(axis=-1) == pytest.approx(np.ones(weights.shape[:2]), abs=1e-5)
            if loaded.info.kind == "decoder":
                assert not np.triu(weights, 1).any()


@pytest.mark.parametrize("name", PICO)
def test_every_architecture_hands_out_the_weights_of_all_its_blocks(name: str) -> None:
    model = pico(name)
    maps = next(attention_maps(model, ["the quick brown fox jumps"], 16))
    first = find_stacks(model.model).stacks[0]
    assert list(maps) == [f"{first.prefix}layer_{at}" for at in range(first.n_layer)]
    for weights in maps.values():
        assert weights.sum(axis=-1) == pytest.approx(np.ones(weights.shape[:2]), abs=1e-5)


def test_eager_weights_belong_to_the_same_function() -> None:
    """The weights times the values, by hand for the first head of the first block of tiny-gpt, give what it mixes."""
    loaded = load(resolve("tiny-gpt"), LoadOptions())
    block = loaded.model.transformer.h[0]
    ids = torch.tensor([loaded.tokenizer(TEXTS[0])["input_ids"][:16]])
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        block.attn.c_attn.register_forward_hook(lambda m, a, out: seen.update(qkv=out)),
        block.attn.c_proj.register_forward_pre_hook(lambda m, a: seen.update(mixed=a[0])),
    ]
    with torch.inference_mode():
        loaded.model(ids)
    for hook in hooks:
        hook.remove()
    weights = next(iter(attention_maps(loaded, TEXTS[:1], 16)))["layer_0"][0]
    width = loaded.info.hidden_size // len(next(iter(attention_maps(loaded, TEXTS[:1], 16)))["layer_0"])
    values = seen["qkv"][0, :, -loaded.info.hidden_size :][:, :width].numpy()
    assert weights @ values == pytest.approx(seen["mixed"][0, :, :width].numpy(), abs=1e-4)


def test_models_without_attention_weights_are_refused(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohomcli.models.attentions._maps", lambda stack, ids: {})
    with pytest.raises(InputRefused, match="no attention weights"):
        next(attention_maps(loaded, TEXTS, 16))
    broken = {"layer_0": np.full((1, 2, 2), np.nan, dtype=np.float32)}
    monkeypatch.setattr("cohomcli.models.attentions._maps", lambda stack, ids: broken)
    with pytest.raises(AnalysisIncomplete, match="layer_0"):
        next(attention_maps(loaded, TEXTS, 16))
