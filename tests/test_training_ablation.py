"""Ablations: tasks are what they say, arms push equally hard, verdicts keep their error rate, cells repeat exactly."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from cohomcli.data import listops, modular, scan
from cohomcli.data.answers import END, PAD, SEPARATOR
from cohomcli.data.digitrows import DigitOptions, digit_rows
from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.training.ablation import (
    AblationPlan,
    AblationTask,
    Cell,
    choose_weights,
    final_cells,
    first_batch,
    run_cell,
    tuning_cells,
)
from cohomcli.training.ablation_results import CellResult
from cohomcli.training.ablation_summary import summarise
from cohomcli.training.answers import answer_rows
from cohomcli.training.arms import ARMS, block_states, gradient_norms, objective_of, soft_orthogonality, vicreg
from cohomcli.training.data import IGNORE
from cohomcli.training.language import inputs_of, summed_loss, targets_in
from cohomcli.training.loop import Hooks, Job, Plain, adamw, train
from cohomcli.training.options import TrainOptions
from cohomcli.training.paired import Differences, bootstrap_interval, detectable, holm, judge, paired_p
from cohomcli.training.scoring import score

# ---- tasks --------------------------------------------------------------------------------------------------------


def test_commands_mean_what_the_grammar_says() -> None:
    known = dict(scan.commands())
    assert len(known) == 60 + 2 * 60 * 60
    examples = {
        "jump": "JUMP",
        "walk left": "LEFT WALK",
        "run opposite right twice": "RIGHT RIGHT RUN RIGHT RIGHT RUN",
        "look and jump left": "LOOK LEFT JUMP",
        "look after jump thrice": "JUMP JUMP JUMP LOOK",
    }
    for words, actions in examples.items():
        assert known[tuple(words.split())] == tuple(actions.split())
    assert max(len(actions) for actions in known.values()) == 18


@pytest.mark.parametrize("split", ["length", "primitive"])
def test_scan_splits_ask_for_composition(split: str) -> None:
    found = scan.scan(scan.ScanOptions(split=split, judged=200), seed=3)
    parts = [set(part) for part in (found.train, found.validation, found.test)]
    assert not (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2])
    assert len(found.validation) == len(found.test) == 100
    if split == "length":
        assert max(len(actions) for _, actions in found.train) == 9
        assert min(len(actions) for _, actions in (*found.validation, *found.test)) == 10
    else:
        with_jump = [pair for pair in found.train if "jump" in pair[0]]
        assert set(with_jump) == {(("jump",), ("JUMP",))}
        assert len(with_jump) / len(found.train) == pytest.approx(0.1, abs=0.01)
        assert all("jump" in words and len(words) > 1 for words, _ in found.test)
    assert scan.scan(scan.ScanOptions(split=split, judged=200), seed=3) == found


def _value(tokens: list[str]) -> int:
    # recursive descent, written apart from the generator
    token = tokens.pop(0)
    if not token.startswith("["):
        return int(token)
    values = []
    while tokens[0] != "]":
        values.append(_value(tokens))
    tokens.pop(0)
    ordered = sorted(values)
    return {
        "[MAX": ordered[-1],
        "[MIN": ordered[0],
        "[MED": math.floor(np.median(ordered)),
        "[SUM": sum(values) % 10,
    }[token]


def test_listops_answers_are_the_values_of_their_trees() -> None:
    options = listops.ListOpsOptions(depth=3, examples=400, judged=100)
    found = listops.listops(options, 1)
    everything = (*found.train, *found.validation, *found.test)
    assert len({question for question, _ in everything}) == 500
    for question, (answer,) in everything:
        tokens = list(question)
        assert len(tokens) <= 32
        assert _value(tokens) == int(answer)
        assert tokens == []
    assert any(question.count("]") > 2 for question, _ in everything)


def test_modular_addition_is_the_whole_table_in_three_parts() -> None:
    found = modular.modular(modular.ModularOptions(modulus=7, train_share=0.5), 0)
    everything = (*found.train, *found.validation, *found.test)
    assert len(set(everything)) == 49
    assert all((int(q[0]) + int(q[2])) % 7 == int(a[0]) for q, a in everything)


def test_digits_are_the_images_in_grey_levels() -> None:
    from sklearn.datasets import load_digits

    found = digit_rows(DigitOptions(), 0)
    rows = [row for part in (found.train, found.validation, found.test) for row in part]
    data = load_digits()
    pairs = zip(data.target, data.data, strict=True)
    expected = sorted((4 + c, *(int(v * 4 // 17) for v in image)) for c, image in pairs)
    assert sorted(rows) == expected
    assert max(map(max, rows)) < found.mask_id < found.vocabulary


@pytest.mark.parametrize(
    "make",
    [
        lambda: listops.ListOpsOptions(depth=0),
        lambda: modular.ModularOptions(modulus=1),
        lambda: DigitOptions(levels=40),
        lambda: listops.listops(listops.ListOpsOptions(depth=1, arguments=2, examples=5000), 0),
        lambda: scan.scan(scan.ScanOptions(split="around"), 0),
        lambda: scan.scan(scan.ScanOptions(cutoff=0), 0),
        lambda: scan.scan(scan.ScanOptions(cutoff=18), 0),
    ],
)
def test_tasks_that_cannot_be_are_refused(make) -> None:
    with pytest.raises(UsageError, match=r"ablation\.options"):
        make()


# ---- rows and scores ----------------------------------------------------------------------------------------------


def _task(metric: str = "accuracy") -> AblationTask:
    splits = modular.modular(modular.ModularOptions(modulus=5, train_share=0.6), 0)
    ids = {word: at for at, word in enumerate(splits.vocabulary)}
    parts = [answer_rows(part, ids, (PAD, SEPARATOR, END)) for part in (splits.train, splits.validation, splits.test)]

    def new(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(ids), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=16,
        )  # fmt: skip
        return LlamaForCausalLM(config)

    return AblationTask("modular", "sums modulo 5", new, "causal", *parts, metric, True)


OPTIONS = TrainOptions(max_steps=12, batch_size=5, warmup_steps=2, learning_rate=1e-2, save_every=0, eval_every=0)
PLAN = AblationPlan(("none", "ours", "placebo"), (0.1, 0.3), (100, 101), (0, 1), 6)


def test_rows_ask_for_the_answer_alone() -> None:
    ids = {word: at for at, word in enumerate("psea bc")}
    rows = answer_rows([(("a", "b"), ("c",)), (("a",), ("b",))], ids, ("p", "s", "e"))
    batch = rows.batch([0, 1], 0)
    assert batch["input_ids"].tolist() == [[3, 5, 1, 6, 2], [3, 1, 5, 2, 0]]
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, IGNORE, 6, 2], [IGNORE, IGNORE, 5, 2, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert rows.batch([1], 0)["input_ids"].shape == (1, 4)


def test_a_whole_answer_is_right_when_greedy_decoding_writes_it(tmp_path: Path) -> None:
    task = replace(_task(), test=_task().train)  # learnt by heart in part
    run = run_cell(task, PLAN, Cell("final", "none", None, 0), replace(OPTIONS, max_steps=60), tmp_path)
    model = task.new_model(0)
    job = Job(model, "causal", task.train, task.validation, lambda m, f: None, lambda m, f: None, Plain(), adamw)
    train(job, replace(OPTIONS, max_steps=60), tmp_path / "again", Hooks())
    data, right = task.test, 0
    for at in range(len(data)):
        length = int((data.labels[at] == IGNORE)[: int(data.lengths[at])].sum())
        ids = data.ids[at, :length][None]
        while ids.shape[1] < int(data.lengths[at]):
            with torch.no_grad():
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        right += torch.equal(ids[0], data.ids[at, : int(data.lengths[at])])
    found = score(model, data, "causal", 3, whole_answers=True)
    assert found.accuracy == right / len(data) == run.test_accuracy
    tokens = score(model, data, "causal", 3, whole_answers=False).accuracy
    assert 0 < found.accuracy <= tokens < 1


# ---- arms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ARMS if ARMS.get(name).build is not None])
def test_every_arm_pushes_as_hard_as_its_weight_says(name: str) -> None:
    task = _task()
    model = task.new_model(1)
    batch = first_batch(task, OPTIONS, torch.device("cpu"))
    objective = objective_of(ARMS.get(name), 0.3, model, batch, "causal", 1)
    outputs, terms = objective.forward(model, inputs_of(batch))
    loss = summed_loss(outputs, batch["labels"], "causal") / targets_in(batch["labels"])
    weights = list(model.parameters())
    sizes = []
    for value in (terms[name], loss):
        found = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        sizes.append(sum(float(g.double().pow(2).sum()) for g in found if g is not None) ** 0.5)
    assert sizes[0] == pytest.approx(0.3 * sizes[1], rel=1e-4)


def test_structural_terms_keep_their_mean_over_steps() -> None:
    task = _task()
    model = task.new_model(1)
    batch = first_batch(task, OPTIONS, torch.device("cpu"))
    objective = objective_of(ARMS.get("ours"), 0.3, model, batch, "causal", 1)
    with torch.no_grad():
        plain = float(objective.forward(model, inputs_of(batch))[1]["ours"])
        by_step = [float(objective.forward(model, inputs_of(batch), step)[1]["ours"]) for step in range(8)]
    assert sum(by_step) / 8 == pytest.approx(plain, rel=1e-5)
    assert by_step.count(0.0) == 6


def test_padding_does_not_reach_a_term() -> None:
    splits = scan.scan(scan.ScanOptions(judged=20), 0)
    ids = {word: at for at, word in enumerate(splits.vocabulary)}
    config = LlamaConfig(
        vocab_size=len(ids), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    batch = inputs_of(answer_rows(splits.train[:6], ids, (PAD, SEPARATOR, END)).batch(range(6), 0))
    assert not batch["attention_mask"].all()
    longer = {name: nn.functional.pad(value, (0, 7)) for name, value in batch.items()}
    other = {**longer, "input_ids": longer["input_ids"].masked_fill(longer["attention_mask"] == 0, 5)}
    for name in ("literal", "placebo", "vicreg", "spectral"):
        term = ARMS.get(name).build(model, 0)
        with torch.no_grad():
            one, two = (float(term.forward(model, inputs, None)[1]) for inputs in (longer, other))
        assert one == pytest.approx(two, rel=1e-5), name


def test_block_states_are_those_of_the_model() -> None:
    task = _task()
    model = task.new_model(0).eval()
    inputs = inputs_of(first_batch(task, OPTIONS, torch.device("cpu")))
    with torch.no_grad(), block_states(model) as states:
        known = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == 3
    torch.testing.assert_close(states[0], known[0])
    torch.testing.assert_close(states[1], known[1])
    torch.testing.assert_close(model.model.norm(states[2]), known[2])


def test_known_answers_of_the_baselines() -> None:
    Q = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))[0]
    assert float(soft_orthogonality(Q)) == pytest.approx(0, abs=1e-10)
    assert float(soft_orthogonality(2 * Q.T)) == pytest.approx(9, rel=1e-5)  # (4 - 1)^2
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.5, 1.5, 1.0])
    C = np.cov(x.double().numpy().T)
    spread = np.maximum(0, 1 - np.sqrt(np.diag(C) + 1e-4)).mean()
    expected = 25 * spread + ((C**2).sum() - (np.diag(C) ** 2).sum()) / 3
    assert float(vicreg(x)) == pytest.approx(expected, rel=1e-5)


def test_a_term_without_gradient_is_refused() -> None:
    class Flat:
        def forward(self, model, inputs, step):
            return model(**inputs), torch.zeros((), requires_grad=True)

    task = _task()
    model = task.new_model(0)
    batch = first_batch(task, OPTIONS, torch.device("cpu"))
    assert gradient_norms(Flat(), model, batch, "causal")[0] == 0
    with pytest.raises(AnalysisIncomplete, match="no finite gradient"):
        objective_of(replace(ARMS.get("ours"), build=lambda model, seed: Flat()), 0.1, model, batch, "causal", 0)


# ---- verdicts -----------------------------------------------------------------------------------------------------


def test_p_values_and_intervals_are_the_known_ones() -> None:
    x = [0.3, 0.1, 0.25, 0.2, 0.4]
    assert paired_p(x) == pytest.approx(stats.ttest_rel(x, [0.0] * 5).pvalue)
    low, high = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert detectable(x, 0.9) == pytest.approx((high - low) / 2)
    found = stats.bootstrap((x,), np.mean, method="percentile", confidence_level=0.9, n_resamples=40_000, rng=0)
    assert bootstrap_interval(x, 0.9) == pytest.approx(tuple(found.confidence_interval), abs=0.01)
    many = np.random.default_rng(0).normal(size=12)
    found = stats.bootstrap((many,), np.mean, method="percentile", n_resamples=40_000, rng=0)
    assert bootstrap_interval(many, 0.95) == pytest.approx(tuple(found.confidence_interval), abs=0.03)
    # Holm 1979 as worked out by hand: 0.01 x 4, then the running maximum of 0.02 x 3, 0.03 x 2, 0.04
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert paired_p([0.0] * 5) == 1.0
    assert paired_p([0.1] * 5) == 1 / 16


@pytest.mark.parametrize(("metric", "expected"), [("accuracy", "helps"), ("loss", "hurts")])
def test_a_clear_difference_is_called_in_the_metrics_own_direction(metric: str, expected: str) -> None:
    rng = random.Random(0)
    clear = Differences("ours", "none", tuple(0.5 + rng.gauss(0, 0.02) for _ in range(5)))
    noise = Differences("placebo", "none", tuple(rng.gauss(0, 0.1) for _ in range(5)))
    ours, placebo = judge([clear, noise], metric)
    assert (ours.verdict, placebo.verdict) == (expected, "no evidence")
    assert judge([replace(clear, values=clear.values[:4])], metric)[0].verdict == "no evidence"
    opposite = replace(clear, values=tuple(-value for value in clear.values))
    assert {judge([opposite], metric)[0].verdict, expected} == {"helps", "hurts"}


@pytest.mark.parametrize("draw", ["normal", "laplace", "rounded"])
def test_null_arms_are_rarely_called(draw: str) -> None:
    # eight comparisons as in a full ablation, all arms equal: a family with any verdict is a false positive
    rng = np.random.default_rng(5)
    false = 0
    for _ in range(150):
        values = getattr(rng, "laplace" if draw == "laplace" else "normal")(size=(7, 5))
        values = values.round() if draw == "rounded" else values
        differences = [Differences(str(k), "0", tuple(values[k] - values[0])) for k in range(1, 7)]
        differences += [Differences("1", str(k), tuple(values[1] - values[k])) for k in (2, 6)]
        false += any(one.verdict != "no evidence" for one in judge(differences, "accuracy"))
    assert false / 150 <= 0.06


# ---- cells --------------------------------------------------------------------------------------------------------


def test_every_arm_has_the_same_budget_and_seeds_of_its_own() -> None:
    plan = replace(PLAN, arms=("none", "ours", "literal", "placebo", "compute"), compute_ratio=1.25)
    cells = tuning_cells(plan)
    budget = {name: [cell for cell in cells if cell.arm == name] for name in plan.arms}
    assert {name: len(found) for name, found in budget.items()} == {
        "none": 0, "ours": 4, "literal": 4, "placebo": 4, "compute": 0,
    }  # fmt: skip
    final = final_cells(plan, {"ours": 0.1, "literal": 0.3, "placebo": 0.1})
    assert {cell.seed for cell in final}.isdisjoint({cell.seed for cell in cells})
    assert len({cell.key for cell in (*cells, *final)}) == len(cells) + len(final) == 12 + 10
    assert [plan.steps(name, 100) for name in plan.arms] == [100, 100, 100, 100, 125]


@pytest.mark.parametrize(
    "change",
    [
        {"arms": ("ours", "placebo")},
        {"arms": ("none",)},
        {"arms": ("none", "our")},
        {"weights": (0.0,)},
        {"weights": ()},
        {"seeds": (100, 1)},
    ],
)
def test_plans_that_compare_nothing_are_refused(change: dict) -> None:
    with pytest.raises(UsageError):
        replace(PLAN, **change)


def test_weights_are_chosen_on_validation_and_the_smaller_of_equals() -> None:
    def result(weight: float, seed: int, loss: float | None) -> CellResult:
        return CellResult("tune", "ours", weight, seed, 6, loss is None, loss, None if loss is None else -loss)

    results = [result(0.1, 100, 1.0), result(0.1, 101, 3.0), result(0.3, 100, 2.0), result(0.3, 101, 2.0)]
    assert choose_weights(PLAN, results, "loss") == {"ours": 0.1}
    assert choose_weights(PLAN, results, "accuracy") == {"ours": 0.1}
    better = [*results[:2], result(0.3, 100, 1.5), result(0.3, 101, 2.0)]
    assert choose_weights(PLAN, better, "loss") == {"ours": 0.3}
    assert choose_weights(PLAN, [*better[:3], result(0.3, 101, None)], "loss") == {"ours": 0.1}
    with pytest.raises(AnalysisIncomplete, match="diverged at every weight"):
        choose_weights(PLAN, [result(w, s, None) for w in PLAN.weights for s in PLAN.tune_seeds], "loss")


def test_arms_of_a_seed_differ_in_nothing_but_their_term(tmp_path: Path) -> None:
    task = _task()
    plain = run_cell(task, PLAN, Cell("final", "none", None, 1), OPTIONS, tmp_path / "a")
    faint = run_cell(task, PLAN, Cell("final", "placebo", 1e-12, 1), OPTIONS, tmp_path / "b")
    strong = run_cell(task, PLAN, Cell("final", "placebo", 1.0, 1), OPTIONS, tmp_path / "c")
    assert faint.test_loss == pytest.approx(plain.test_loss, rel=1e-6)
    assert strong.test_loss != pytest.approx(plain.test_loss, rel=1e-3)


def test_an_interrupted_cell_goes_on_to_the_same_result(tmp_path: Path) -> None:
    task, cell = _task(), Cell("final", "ours", 0.3, 0)
    options = replace(OPTIONS, save_every=4, keep=9)
    whole = run_cell(task, PLAN, cell, options, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole/step-000008").rename(tmp_path / "killed/step-000008")
    assert run_cell(task, PLAN, cell, options, tmp_path / "killed") == whole


def test_divergence_is_a_result(tmp_path: Path) -> None:
    wild = replace(OPTIONS, learning_rate=1e30, max_grad_norm=0.0, warmup_steps=0)
    found = run_cell(_task(), PLAN, Cell("tune", "placebo", 0.1, 100), wild, tmp_path)
    assert (found.diverged, found.validation_loss, found.test_loss) == (True, None, None)


def test_the_summary_compares_every_arm_with_the_plain_one_and_ours_with_its_rivals() -> None:
    plan = replace(PLAN, arms=("none", "ours", "placebo", "compute"), seeds=tuple(range(5)), compute_ratio=1.2)
    levels = {"none": 0.5, "ours": 0.7, "placebo": 0.5, "compute": 0.6}
    rng = random.Random(1)

    def cell(name: str, seed: int) -> CellResult:
        value = levels[name] + rng.gauss(0, 0.004)
        return CellResult("final", name, None, seed, 12, False, 1.0, 0.5, 1.0, value)

    final = [cell(name, seed) for seed in plan.seeds for name in plan.arms]
    result = summarise(_task(), plan, [], final, 10, 0.95)
    verdicts = {(one.arm, one.against): one.verdict for one in result.comparisons}
    assert verdicts == {
        ("ours", "none"): "helps",
        ("placebo", "none"): "no evidence",
        ("compute", "none"): "helps",
        ("ours", "placebo"): "helps",
        ("ours", "compute"): "helps",
    }
    assert [arm.verdict for arm in result.arms] == ["reference", "helps", "no evidence", "helps"]
    broken = [replace(r, diverged=True, test_accuracy=None, test_loss=None) if r.arm == "ours" else r for r in final]
    result = summarise(_task(), plan, [], broken, 10, 0.95)
    ours = result.arms[1]
    assert (ours.verdict, ours.diverged, ours.mean) == ("hurts", 5, None)
    assert all(one.arm != "ours" for one in result.comparisons)
