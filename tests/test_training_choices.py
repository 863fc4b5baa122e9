"""What `cohom train` can choose: the exact optimiser, learning rates by level, TensorBoard, sharded training."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training_loop import FAST, _data, _gpt, _job, _load, _save, _weights, _without_dropout

from cohomcli.config.training import TrainingConfig
from cohomcli.errors import UsageError
from cohomcli.jobs.history import history
from cohomcli.jobs.optimisers import levels_for, optimizer_for
from cohomcli.models.maps import consecutive_maps
from cohomcli.training.levels import SpectralLevels, levels_of
from cohomcli.training.loop import Hooks, Job, Plain, train
from cohomcli.training.optimiser import ExactSequenceOptimizer, exact_adamw
from cohomcli.training.results import Record


def _chosen(optimizer: str, schedule: str, seed: int = 0) -> Job:
    model = _without_dropout(_job(_gpt(seed))).model
    wanted = TrainingConfig(optimizer=optimizer, schedule=schedule)
    levels = levels_for(model, wanted)
    data = _data()
    return Job(
        model, "causal", data, _data(6, seed=1), _save, _load, Plain(), optimizer_for(wanted, levels), levels
    )  # fmt: skip


@pytest.mark.parametrize(("optimizer", "schedule"), [("exact", "cosine"), ("adamw", "spectral"), ("exact", "spectral")])
def test_every_choice_resumes_to_the_same_bits(tmp_path: Path, optimizer: str, schedule: str) -> None:
    options = replace(FAST, schedule=schedule)
    whole = _chosen(optimizer, schedule)
    expected = train(whole, options, tmp_path / "whole", Hooks())
    shutil.copytree(tmp_path / "whole/step-000008", tmp_path / "killed/step-000008")
    resumed = _chosen(optimizer, schedule, seed=5)
    result = train(resumed, options, tmp_path / "killed", Hooks(), tmp_path / "killed/step-000008")
    pairs = zip(_weights(whole.model).values(), _weights(resumed.model).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert result.history == expected.history
    plain = _chosen("adamw", "constant")
    train(plain, replace(FAST, schedule="constant"), tmp_path / "plain", Hooks())
    pairs = zip(_weights(whole.model).values(), _weights(plain.model).values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_no_step_lowers_what_the_next_block_reads() -> None:
    model = _without_dropout(_job()).model.train()
    optimizer = exact_adamw(model, replace(FAST, weight_decay=0.5))
    assert isinstance(optimizer, ExactSequenceOptimizer)
    assert len(consecutive_maps(model)) == 1
    optimizer.refresh = 10**6  # one frame for the whole test
    data, lowered, moved = _data(), 0, 0.0
    for step in range(12):
        batch = data.batch(range(step, step + 8), 0)
        loss = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        loss.backward()
        reader = optimizer._sequences[0].B.clone()
        left, right = optimizer._frame(optimizer._sequences[0])
        before = torch.einsum("mr,mn,nr->r", reader.T @ left, optimizer._sequences[0].A.clone(), right)
        optimizer.step()
        after = torch.einsum("mr,mn,nr->r", reader.T @ left, optimizer._sequences[0].A, right)
        optimizer.zero_grad()
        lowered += int((after < before - 1e-5 * before.abs().max()).sum())
        moved += float((after - before).abs().sum())
    assert lowered == 0
    assert moved > 0


def test_the_exact_optimiser_needs_known_maps() -> None:
    model = _gpt()
    for block in model.transformer.h:
        block.mlp.c_proj, block.mlp.other = torch.nn.Identity(), block.mlp.c_proj
    with pytest.raises(UsageError, match="optimizer adamw"):
        exact_adamw(model, FAST)


def test_upper_levels_wait_for_the_lower_ones() -> None:
    model = _gpt().eval()
    levels = SpectralLevels(model)
    assert [levels.factor(level) for level in range(3)] == pytest.approx([1.0, 0.1, 0.01])
    kinds = levels_of(model)
    named = {name: kinds[id(p)] for name, p in model.named_parameters()}
    assert named["transformer.wte.weight"] == named["transformer.h.0.ln_1.weight"] == 0
    assert named["transformer.h.1.ln_1.weight"] == 1
    assert named["transformer.ln_f.weight"] == 2
    assert len(kinds) == len(list(model.parameters()))
    # a model without attention says the same under every window: all pages agree
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.zero_()
    inputs = {name: value for name, value in _data().batch(range(4), 0).items() if name != "labels"}
    for step in range(200):
        levels.observe(model, inputs, step)
    assert [levels.factor(level) for level in range(3)] == [1.0, 1.0, 1.0]
    again = SpectralLevels(_gpt())
    again.load_state_dict(levels.state_dict())
    assert again.factor(2) == 1.0


def test_learning_rates_by_level_reach_the_optimiser(tmp_path: Path) -> None:
    seen: list[dict[int, float]] = []
    job = _chosen("adamw", "spectral")
    make = job.optimizer

    def spied(model, options):
        optimizer = make(model, options)
        step = optimizer.step

        def noted(*arguments):
            seen.append({group["level"]: group["lr"] for group in optimizer.param_groups})
            return step(*arguments)

        optimizer.step = noted
        return optimizer

    train(replace(job, optimizer=spied), replace(FAST, schedule="spectral", save_every=0), tmp_path, Hooks())
    assert seen[-1] == pytest.approx({0: 1e-2, 1: 1e-3, 2: 1e-4})


def test_tensorboard_holds_every_figure_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with history(tmp_path, tensorboard=True, resumed=False) as record:
        record(Record(0, {}, 1e-3, 0.0, 2.5, {"free_share": 0.25}))
        record(Record(5, {"lm": 2.0, "exact": 0.5}, 1e-2, 1.0))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["eval/loss"] == [(0, 2.5)]
    assert found["eval/free_share"] == [(0, 0.25)]
    assert found["train/lm"] == [(5, 2.0)]
    assert found["learning_rate"] == [(0, 0.001), (5, 0.01)]
    assert len((tmp_path / "artifacts/history.jsonl").read_text().splitlines()) == 2
