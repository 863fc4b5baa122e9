"""Circuit discovery against independent truth: identities, finite differences, arithmetic by hand, a known circuit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import inductionmodel
import pytest
import tinymodels
import torch
from torch import Tensor

from cohomcli.circuits.batches import PairBatch, batches_of, measure, plain
from cohomcli.circuits.channels import ChannelGraph, frozen
from cohomcli.circuits.discover import _Search, discover, grid
from cohomcli.circuits.edges import EdgeGraph
from cohomcli.circuits.faithfulness import Bench, faithfulness, kept_metrics, limits, replacements
from cohomcli.circuits.results import CircuitOptions
from cohomcli.circuits.scores import agreement, to_check
from cohomcli.data.pairs import TokenPair, encode_pairs
from cohomcli.data.tasks import task_pairs
from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models.attentions import attention_maps
from cohomcli.models.probe import find_layout
from cohomcli.models.wiring import wire
from cohomcli.nn import CohomologicalTransformer

OWN = "cohomological"
# One of each kind: a fused map, grouped keys, attention and MLP side by side with interleaved maps, an MLP of its own.
FAMILIES = ("gpt2", "llama", "gpt_neox", "opt", "phi")


@cache
def pairs() -> tuple[TokenPair, ...]:
    draw = torch.Generator().manual_seed(0)
    found = []
    for length in (7, 7, 7, 9):
        clean = torch.randint(10, 300, (length,), generator=draw)
        corrupt = clean.clone()
        corrupt[2:5] = torch.randint(10, 300, (3,), generator=draw)
        found.append(TokenPair(tuple(clean.tolist()), tuple(corrupt.tolist()), (7, 9), (8,)))
    return tuple(found)


def model_of(family: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = _own() if family == OWN else tinymodels.build(family)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:  # large enough that attention is not uniform
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
    return model.to(dtype).eval()


def _own() -> torch.nn.Module:
    torch.manual_seed(0)
    return CohomologicalTransformer(vocab_size=320, dim=16, sequence_dim=8, num_heads=2, exact="hard", causal=True)


def graph(model: torch.nn.Module, level: str, metric: str = "logit") -> ChannelGraph | EdgeGraph:
    stack = find_layout(model).stacks[0]
    if level == "edges":
        return EdgeGraph(model, wire(model, stack), stack.final_norm, metric)
    return ChannelGraph(model, wire(model, stack), level, metric)


def batch() -> PairBatch:
    return batches_of(pairs(), torch.device("cpu"))[0]


@pytest.mark.parametrize(
    ("family", "level"),
    [*itertools.product(FAMILIES, ("heads", "neurons", "edges")), (OWN, "heads"), (OWN, "neurons")],
)
def test_exchanging_nothing_or_everything_gives_the_two_runs(family: str, level: str) -> None:
    model = model_of(family)
    found = graph(model, level)
    recorded = found.record(batch())
    n = len(found.components)
    masks = torch.stack([torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)])
    none, everything = found.exchanged(recorded, "clean", recorded.side("corrupt"), masks)
    clean, corrupt = (plain(model, [batch()], side, "logit") for side in ("clean", "corrupt"))
    assert float((clean - corrupt).abs().min()) > 1e-3
    torch.testing.assert_close(none, clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(everything, corrupt, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_edges_that_leave_a_part_are_the_part(family: str) -> None:
    model = model_of(family)
    heads, edges = graph(model, "heads"), graph(model, "edges")
    by_head, by_edge = heads.record(batch()), edges.record(batch())
    for at, name in enumerate(heads.components):
        whole = torch.zeros(1, len(heads.components), dtype=torch.bool)
        whole[0, at] = True
        leaving = torch.tensor([[edge.startswith(f"{name} -> ") for edge in edges.components]])
        one = heads.exchanged(by_head, "clean", by_head.side("corrupt"), whole)
        two = edges.exchanged(by_edge, "clean", by_edge.side("corrupt"), leaving)
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_a_patched_head_is_arithmetic_on_the_attentions_output() -> None:
    model = model_of("llama")  # two heads share one group of keys and values
    found = graph(model, "heads")
    recorded = found.record(batch())
    attention = model.model.layers[1].self_attn
    weight = attention.o_proj.weight[:, 8:16]  # the second head of two, eight channels each
    change = (recorded.corrupt[2] - recorded.clean[2])[..., 8:16] @ weight.T
    handle = attention.register_forward_hook(lambda _m, _a, out: (out[0] + change, *out[1:]))
    with torch.no_grad():
        logits = model(batch().clean).logits[:, -1]
    handle.remove()
    mask = torch.tensor([[name == "layer_1.head_1" for name in found.components]])
    ours = found.exchanged(recorded, "clean", recorded.side("corrupt"), mask)
    torch.testing.assert_close(ours, measure(logits, batch(), "logit"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", ["clean", "corrupt"])
@pytest.mark.parametrize(
    ("family", "level"), [*itertools.product(("gpt2", "llama", "gpt_neox"), ("heads", "edges")), (OWN, "heads")]
)
def test_attribution_is_the_derivative_of_the_exchange(family: str, level: str, base: str) -> None:
    model = model_of(family, torch.float64)
    found = graph(model, level, "probability")
    other = "corrupt" if base == "clean" else "clean"
    with frozen(model):
        recorded = found.record(batch())
        first_order = found.attribution(recorded, base, 0)
    chosen = range(0, len(found.components), 1 if level == "heads" else 7)
    masks = torch.zeros(len(chosen), len(found.components), dtype=torch.bool)
    masks[torch.arange(len(chosen)), torch.tensor(list(chosen))] = True
    step, moved = 3e-3, []  # Llama's norms compute in float32 whatever the model is in
    for sign in (1, -1):
        pairs_of = zip(recorded.side(base), recorded.side(other), strict=True)
        values = [own + sign * step * (theirs - own) for own, theirs in pairs_of]
        moved.append(found.exchanged(recorded, base, values, masks))
    torch.testing.assert_close(first_order[:, list(chosen)].T, (moved[0] - moved[1]) / (2 * step), atol=1e-4, rtol=2e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_integrated_gradients_explain_the_whole_change(family: str) -> None:
    # Completeness (Sundararajan, Taly, Yan 2017, arXiv:1703.01365): every reader sees the input in its stream, so what
    # the edges from the input are given adds up to the change of the metric.
    model = model_of(family, torch.float64)
    found = graph(model, "edges")
    with frozen(model):
        scores = found.attribution(found.record(batch()), "clean", 64)
    clean, corrupt = (plain(model, [batch()], side, "logit") for side in ("clean", "corrupt"))
    from_input = [name.startswith("input -> ") for name in found.components]
    torch.testing.assert_close(scores[:, from_input].sum(1), (corrupt - clean)[:], atol=0.02, rtol=0.02)


def test_edges_are_refused_where_the_stream_is_no_sum() -> None:
    model = model_of("gemma2")
    with pytest.raises(InputRefused, match="not the plain sum"):
        graph(model, "edges").record(batch())


# ---- a circuit that is known ---------------------------------------------------------------------------------------


@cache
def induction_setting() -> tuple[torch.nn.Module, tuple[TokenPair, ...]]:
    tokenizer = inductionmodel.tokenizer()
    return inductionmodel.model(), tuple(encode_pairs(tokenizer, task_pairs("induction", tokenizer, 16, 0)))


@pytest.mark.parametrize("method", ["attribution", "integrated", "exact"])
def test_the_known_heads_are_found_and_nothing_else(method: str) -> None:
    model, known = induction_setting()
    stack = find_layout(model).stacks[0]
    result = discover(model, stack, known, CircuitOptions(method=method, check=10), "induction")
    assert result.circuit == (inductionmodel.PREVIOUS, inductionmodel.INDUCTION)
    assert (result.accuracy, result.minimal, result.stability) == (1.0, True, 1.0)
    assert result.faithfulness == pytest.approx(1, abs=0.01)
    assert result.low <= result.faithfulness <= result.high
    assert (result.curve[0].faithfulness, result.curve[-1].faithfulness) == pytest.approx((0, 1), abs=1e-5)
    if method != "exact":
        assert result.agreement.all_components
        assert result.agreement.same_sign > 0.5


def test_the_known_edges_are_found() -> None:
    model, known = induction_setting()
    options = CircuitOptions(level="edges")
    result = discover(model, find_layout(model).stacks[0], known, options)
    # what the first head reads differs in its values only, and the second head meets it through its keys
    assert result.circuit == (
        "input -> layer_0.head_1.v",
        "layer_0.head_1 -> layer_1.head_2.k",
        "layer_1.head_2 -> logits",
    )


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_the_known_heads_are_found_under_other_ablations(ablation: str) -> None:
    model, known = induction_setting()
    options = CircuitOptions(ablation=ablation, tolerance=0.2)
    result = discover(model, find_layout(model).stacks[0], known, options)
    assert set(result.circuit) == {inductionmodel.PREVIOUS, inductionmodel.INDUCTION}
    assert result.low < result.faithfulness < result.high


def test_attention_patterns_confirm_the_heads(tmp_path) -> None:
    loaded = inductionmodel.loaded(tmp_path / "model")
    text = "The apple river stone cloud paper glass apple river stone cloud paper glass"
    maps = next(attention_maps(loaded, [text], 64))
    first, second = torch.from_numpy(maps["layer_0"]), torch.from_numpy(maps["layer_1"])
    previous = first.diagonal(-1, 1, 2).mean(-1)  # (heads,): weight on the token before
    again = second.diagonal(-5, 1, 2)[:, 2:].mean(-1)  # on the token after the same word, from the second round on
    assert previous.argmax() == 1
    assert previous[1] > 0.9
    assert again.argmax() == 2
    assert again[2] > 0.8


def test_a_model_that_does_not_do_the_task_is_refused() -> None:
    model, known = induction_setting()
    turned = [TokenPair(pair.corrupt, pair.clean, pair.answers, pair.wrong) for pair in known]
    with pytest.raises(AnalysisIncomplete, match="does not do this task"):
        discover(model, find_layout(model).stacks[0], turned, CircuitOptions())


@pytest.mark.parametrize(
    ("options", "error", "fragment"),
    [
        ({"method": "integral"}, UsageError, "integrated"),
        ({"level": "head"}, UsageError, "unknown level"),
        ({"ablation": "zero"}, UsageError, "resample"),
        ({"tolerance": 1.5}, UsageError, "tolerance"),
        ({"steps": 0}, UsageError, "at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict, error: type[Exception], fragment: str) -> None:
    model, known = induction_setting()
    with pytest.raises(error, match=fragment):
        discover(model, find_layout(model).stacks[0], known, CircuitOptions(**options))


def test_too_few_pairs_are_refused() -> None:
    model, known = induction_setting()
    with pytest.raises(InputRefused, match="too few"):
        discover(model, find_layout(model).stacks[0], known[:3], CircuitOptions())


# ---- the search and the statistics -----------------------------------------------------------------------------------


class Sum:
    """A graph whose metric is the sum of what is kept of each component's worth: everything about it is known."""

    def __init__(self, worth: Sequence[float]) -> None:
        self.worth = torch.tensor(worth, dtype=torch.float64)
        self.components = tuple(f"layer_0.head_{at}" for at in range(len(worth)))

    def record(self, batch: PairBatch) -> object:
        return self.Recorded(batch)

    class Recorded:
        def __init__(self, batch: PairBatch) -> None:
            self.batch = batch

        def side(self, side: str) -> list[Tensor]:
            return []

    def exchanged(self, recorded, base, values, masks: Tensor) -> Tensor:
        return ((~masks).double() @ self.worth)[:, None].expand(-1, len(recorded.batch))

    def attribution(self, recorded, base, steps) -> Tensor:
        return -self.worth.expand(len(recorded.batch), -1)


@pytest.mark.parametrize(
    "worth", [[5, 3, 1, 0.5, 0.5], [4, -2, 3, 2, 3], [1] * 12, [10, 0.1, 0.1, 0.1], [6, -5, 4, 3, 1, 1, 0.5, -0.5]]
)
@pytest.mark.parametrize("minimise", [True, False])
def test_the_search_finds_a_least_set_in_order_of_effect(worth: list[float], minimise: bool) -> None:
    found = Sum(worth)
    recorded = found.record(batch())
    clean = torch.full((len(batch()),), float(sum(worth)), dtype=torch.float64)
    bench = Bench(found, (recorded,), clean, torch.zeros_like(clean))
    options = CircuitOptions(tolerance=0.15, minimise=minimise)
    result = _Search(bench, -found.worth, options, lambda *_: None).run()

    def fine(members: Sequence[int]) -> bool:
        return abs(1 - sum(worth[at] for at in members) / sum(worth)) <= 0.15 + 1e-12

    members = result.kept.nonzero().flatten().tolist()
    assert fine(members)
    if minimise:
        assert not any(fine([at for at in members if at != left]) for left in members)
    else:  # the shortest prefix of the order
        order = result.order.tolist()
        assert len(members) == next(size for size in range(1, len(worth) + 1) if fine(order[:size]))


def test_faithfulness_and_its_limits_by_hand() -> None:
    found = Sum([2.0, 1.0, 1.0])
    recorded = found.record(batch())
    clean, corrupt = torch.tensor([4.0, 4, 4]), torch.tensor([0.0, 0, 0])
    bench = Bench(found, (recorded,), clean.double(), corrupt.double())
    kept = torch.tensor([[True, False, False], [True, True, True], [False, False, False]])
    metrics = kept_metrics(bench, kept, "pair", 3, 0)
    assert faithfulness(bench, metrics).tolist() == [0.5, 1, 0]
    low, high = limits(bench, metrics, 0)
    assert (low.tolist(), high.tolist()) == ([0.5, 1, 0], [0.5, 1, 0])  # all pairs are equal
    noisy = metrics + torch.tensor([0.4, -0.4, 0.0])
    low, high = limits(bench, noisy, 0)
    assert low[0] == pytest.approx(0.4)  # three times the pair at -0.4
    assert high[0] == pytest.approx(0.6)


def test_replacements_are_of_other_pairs_or_their_mean() -> None:
    class Recorded:
        def __init__(self) -> None:
            self.batch = batch()

        def side(self, side: str) -> list[Tensor]:
            return [torch.arange(3.0).reshape(3, 1, 1), torch.arange(6.0).reshape(2, 3, 1, 1)]

    own = replacements(Recorded(), "pair", 0, 0)
    for draw in range(5):
        for mine, theirs in zip(own, replacements(Recorded(), "resample", draw, 0), strict=True):
            assert sorted(theirs.flatten().tolist()) == sorted(mine.flatten().tolist())
            assert not bool((mine == theirs).any())
    mean = replacements(Recorded(), "mean", 0, 0)
    assert mean[0].flatten().tolist() == [1, 1, 1]
    assert mean[1].flatten().tolist() == [1, 1, 1, 4, 4, 4]


def test_what_is_checked_and_how_it_agrees() -> None:
    effects = torch.tensor([0.0, 5, -4, 0.1, 0.2, 0.3, -0.1, 0])
    chosen = to_check(effects, 4, 0)
    assert chosen[:2] == [1, 2]
    assert len(set(chosen)) == 4
    assert sorted(to_check(effects, 100, 0)) == list(range(8))
    found = agreement(effects, 3 * effects[chosen], chosen)
    assert (found.pearson, found.same_sign) == (pytest.approx(1), 1.0)
    turned = agreement(effects, -effects[chosen], chosen)
    assert (turned.pearson, turned.same_sign) == (pytest.approx(-1), 0.0)
    assert agreement(torch.zeros(3), torch.ones(3), [0, 1, 2]).pearson is None


def test_the_probability_metric_sums_over_answers() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]])).repeat(2, 1)
    one = PairBatch(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[1, 3]]), torch.tensor([[0, -1]]))
    assert measure(logits, one, "probability").flatten().tolist() == pytest.approx([0.5, 0.5])
    expected = (torch.log(torch.tensor(0.2)) + torch.log(torch.tensor(0.4))) / 2 - torch.log(torch.tensor(0.1))
    assert measure(logits, one, "logit")[0, 0] == pytest.approx(float(expected))


def test_the_grid_of_sizes_ends_at_one_and_all() -> None:
    for n in (1, 2, 5, 300, 46_000):
        sizes = grid(n)
        assert (sizes[0], sizes[-1]) == (1, n)
        assert all(a < b for a, b in itertools.pairwise(sizes))
