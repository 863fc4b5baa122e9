"""Hidden cells by the cosine law, and decoding against models whose distributions are known in closed form."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.nn import NonLinearConfig, NonLinearTransformer
from cohomcli.training.data import IGNORE
from cohomcli.training.decoding import DecodingOptions, decode
from cohomcli.training.grids import GridSequences, hide

MASK = 2


def sequences(**kwargs: Any) -> GridSequences:
    torch.manual_seed(0)
    return GridSequences(torch.randint(0, MASK, (50, 4, 5)), MASK, **kwargs)


@pytest.mark.parametrize("r", [0.0, 0.2, 0.5, 2 / 3, 0.9, 0.9999])
def test_the_share_of_hidden_cells_is_the_cosine(r: float) -> None:
    present = torch.ones(3, 20, dtype=torch.bool)
    present[1, 10:] = False
    hidden = hide(torch.full((3,), r), torch.rand(3, 20), present)
    n = present.sum(1)
    wanted = [max(1, math.ceil(math.cos(math.pi * r / 2) * k - 1e-5)) for k in n.tolist()]
    assert hidden.sum(1).tolist() == wanted
    assert not (hidden & ~present).any()


def test_a_batch_depends_on_draw_and_index_alone() -> None:
    data = sequences(classes=torch.arange(50) % 3, n_classes=3, class_dropout=0.3)
    whole = data.batch(range(10), 4)
    parts = [data.batch([at], 4) for at in range(10)]
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([part[name] for part in parts]))
    hidden = whole["labels"] != IGNORE
    assert (whole["input_ids"][hidden] == MASK).all()
    assert torch.equal(torch.where(hidden, whole["labels"], whole["input_ids"]), data.cells[:10])
    assert not torch.equal(whole["input_ids"], data.batch(range(10), 5)["input_ids"])
    many = torch.cat([data.batch(range(50), draw)["class_ids"] for draw in range(40)])
    assert (many == 3).double().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(sequences(classes=torch.arange(50) % 3, n_classes=3).batch(range(50), 1)["class_ids"],
                       torch.arange(50) % 3)  # fmt: skip


def test_mean_share_of_hidden_cells_is_two_over_pi() -> None:
    data = sequences()
    shares = [(data.batch(range(50), draw)["labels"] != IGNORE).double().mean().item() for draw in range(40)]
    assert sum(shares) / 40 == pytest.approx(2 / math.pi + 0.5 / 20, abs=0.02)  # half a cell more by rounding up


class Known(nn.Module):
    """A model of grids given by a function of the grid to log probabilities (B, H, W, 2)."""

    def __init__(self, rule: Any, n_classes: int = 0) -> None:
        super().__init__()
        self.rule, self.calls = rule, 0
        self.one = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(mask_token_id=MASK, n_classes=n_classes)

    def forward(self, input_ids: Tensor, class_ids: Tensor | None = None, **kwargs: Any) -> Any:
        self.calls += 1
        logits = self.rule(input_ids, class_ids)
        return SimpleNamespace(logits=torch.cat([logits, torch.full_like(logits[..., :1], 50.0)], dim=-1))


def all_equal(grids: Tensor, class_ids: Tensor | None) -> Tensor:
    """Exact conditionals of "all cells are 0" and "all cells are 1", even chances."""
    ones, zeros = ((grids == value).flatten(1).any(1) for value in (1, 0))
    score = 30.0 * (ones.double() - zeros.double())
    return torch.stack([-score, score], dim=-1)[:, None, None].expand(*grids.shape, 2) / 2


def canvas(n: int, *size: int) -> Tensor:
    return torch.full((n, *size), MASK)


def test_one_cell_at_a_time_samples_the_joint_distribution_and_one_pass_its_marginals() -> None:
    one_by_one = decode(Known(all_equal), canvas(400, 3, 4), DecodingOptions(steps=12, noise=0))
    means = one_by_one.grids.double().mean((1, 2))
    assert set(means.tolist()) == {0.0, 1.0}
    assert means.mean().item() == pytest.approx(0.5, abs=0.1)
    at_once = decode(Known(all_equal), canvas(400, 3, 4), DecodingOptions(steps=1))
    share = at_once.grids.flatten(1).double().mean(1)
    assert ((share == 0) | (share == 1)).double().mean().item() < 0.02  # 2 / 4096 by chance
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 40])
def test_what_is_left_after_each_pass_is_the_cosine_schedule(steps: int) -> None:
    done = decode(Known(all_equal), canvas(3, 5, 4), DecodingOptions(steps=steps, seed=2))
    expected, left = [], 20
    for step in range(1, steps + 1):
        wish = 0 if step == steps else math.floor(20 * math.cos(math.pi / 2 * step / steps))
        left = max(0, min(wish, left - 1))
        expected.append(left)
    found = [int((done.filled_at[0] > step).sum()) for step in range(1, steps + 1)]
    assert found == expected
    assert (done.filled_at >= 1).all()
    assert (done.grids != MASK).all()


def test_given_cells_stay_and_only_hidden_ones_are_counted() -> None:
    torch.manual_seed(1)
    grids = torch.randint(0, 2, (6, 4, 4))
    hidden = torch.rand(6, 4, 4) < 0.5
    hidden[0] = False
    done = decode(Known(all_equal), grids.masked_fill(hidden, MASK), DecodingOptions(steps=3))
    assert torch.equal(done.grids[~hidden], grids[~hidden])
    assert torch.equal(done.filled_at > 0, hidden)
    assert (done.confidence[~hidden] == 1).all()


def test_the_surest_cells_come_first_and_temperature_zero_takes_the_likeliest() -> None:
    chance = torch.linspace(0.55, 0.95, 9).view(3, 3)

    def rule(grids: Tensor, class_ids: Tensor | None) -> Tensor:
        return torch.stack([(1 - chance).log(), chance.log()], dim=-1).expand(*grids.shape, 2)

    done = decode(Known(rule), canvas(1, 3, 3), DecodingOptions(steps=9, temperature=0, noise=0))
    assert (done.grids == 1).all()
    assert done.filled_at[0].flatten().tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert torch.allclose(done.confidence[0], chance, atol=1e-6)  # the mask token's logit of 50 counts for nothing
    drawn = decode(Known(rule), canvas(4000, 3, 3), DecodingOptions(steps=1, temperature=2.0)).grids.double().mean(0)
    softened = chance.sqrt() / (chance.sqrt() + (1 - chance).sqrt())
    assert torch.allclose(drawn, softened.double(), atol=0.03)


def test_guidance_is_the_published_combination_and_needs_classes() -> None:
    def rule(grids: Tensor, class_ids: Tensor | None) -> Tensor:
        lean = 0.2 if class_ids is None else 1.0
        return torch.tensor([0.0, lean]).expand(*grids.shape, 2)

    classes = torch.zeros(4000, dtype=torch.int64)
    model = Known(rule, n_classes=1)
    done = decode(model, canvas(4000, 1, 3), DecodingOptions(steps=1, guidance=1.5), classes)
    assert done.grids.double().mean().item() == pytest.approx(1 / (1 + math.exp(-(1.0 + 1.5 * 0.8))), abs=0.01)
    assert model.calls == 2
    with pytest.raises(UsageError, match="class"):
        decode(model, canvas(1, 1, 3), DecodingOptions(guidance=1.0))


def test_seeds_repeat_and_differ_and_non_finite_logits_end_it() -> None:
    options = [DecodingOptions(seed=seed) for seed in (1, 1, 2)]
    a, b, c = (decode(Known(all_equal), canvas(4, 4, 4), one) for one in options)
    assert torch.equal(a.filled_at, b.filled_at)
    assert not torch.equal(a.filled_at, c.filled_at)
    with pytest.raises(AnalysisIncomplete, match="not finite"):
        decode(Known(lambda grids, _: torch.full((*grids.shape, 2), math.nan)), canvas(1, 2, 2), DecodingOptions())
    for wrong in ({"steps": 0}, {"temperature": -1.0}, {"guidance": math.inf}, {"noise": math.nan}):
        with pytest.raises(UsageError):
            DecodingOptions(**wrong)  # type: ignore[arg-type]


def grid_model(**settings: Any) -> NonLinearTransformer:
    torch.manual_seed(0)
    own = {"vocab_size": 3, "mask_token_id": 2, "symbols": "01", "class_names": ["a", "b"]}
    small = {"dim": 16, "depth": 2, "heads": 2, "window_size": 1, "matrix_dim": 4}
    return NonLinearTransformer(NonLinearConfig(**own, **small, **settings)).eval()


def test_classes_change_every_cell_and_unknown_is_the_default() -> None:
    model, ids = grid_model(), torch.zeros(2, 4, 4, dtype=torch.int64)
    with torch.no_grad():
        unknown = model(ids).logits
        assert torch.equal(unknown, model(ids, class_ids=torch.tensor([2, 2])).logits)
        a, b = model(ids, class_ids=torch.tensor([0, 1])).logits
    assert ((a - b).abs().amax(-1) > 1e-6).all()
    assert not torch.allclose(unknown[0], a)


def test_configurations_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(UsageError, match="mask_token_id 5"):
        NonLinearConfig(vocab_size=3, mask_token_id=5)
    with pytest.raises(UsageError, match="3 symbols"):
        NonLinearConfig(vocab_size=3, mask_token_id=2, symbols="012")
    plain = NonLinearTransformer(vocab_size=5, dim=8, depth=1, heads=1, matrix_dim=3)
    with pytest.raises(UsageError, match="without classes"):
        plain(torch.zeros(1, 3, 3, dtype=torch.int64), class_ids=torch.zeros(1, dtype=torch.int64))
