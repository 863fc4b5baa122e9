"""The loop: resuming is exact, processes do not matter, schedules and packing are what they say, faults are clear."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.training import checkpoint
from cohomcli.training.data import IGNORE, Order, TextBlocks, pack
from cohomcli.training.loop import Hooks, Job, Plain, adamw, evaluate, train
from cohomcli.training.options import TrainOptions
from cohomcli.training.schedule import learning_rate

VOCAB, LENGTH = 50, 16


def _data(n: int = 24, task: str = "causal", seed: int = 0) -> TextBlocks:
    # a counting language: each token is the one before plus 1 or 2
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 3, (n, LENGTH), generator=generator)
    ids = steps.cumsum(1) % (VOCAB - 4) + 4
    return TextBlocks(ids, task, torch.ones_like(ids, dtype=torch.bool), mask_id=3, vocab_size=VOCAB)


def _gpt(seed: int = 0, width: int = 16) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=LENGTH, n_embd=width, n_layer=2, n_head=2))


def _save(model: nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)


def _load(model: nn.Module, folder: Path) -> None:
    model.load_state_dict(type(model).from_pretrained(folder).state_dict())


def _job(model: nn.Module | None = None, data: TextBlocks | None = None) -> Job:
    data = data or _data()
    return Job(model or _gpt(), data.task, data, _data(6, data.task, 1), _save, _load, Plain(), adamw)


FAST = TrainOptions(
    max_steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=2, log_every=3, eval_every=5, save_every=4, keep=9
)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "change",
    [{}, {"accumulation": 2, "batch_size": 2}, {"ema_decay": 0.9, "patience": 50}],
    ids=["plain", "accumulated", "averaged"],
)  # fmt: skip
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, change: dict) -> None:
    options = replace(FAST, **change)
    whole = _job()
    expected = train(whole, options, tmp_path / "whole", Hooks())
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "whole")] == [
        "step-000004",
        "step-000008",
        "step-000012",
    ]
    # what a kill after step 8 leaves behind, in another process with other random state
    shutil.copytree(tmp_path / "whole" / "step-000008", tmp_path / "killed" / "step-000008")
    (tmp_path / "killed" / ".step-000012" / "trainer").mkdir(parents=True)
    torch.manual_seed(999)
    resumed = _job(_gpt(seed=5))
    result = train(resumed, options, tmp_path / "killed", Hooks(), tmp_path / "killed" / "step-000008")
    pairs = zip(_weights(whole.model).values(), _weights(resumed.model).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert result.history == expected.history
    assert (result.loss, result.tokens, result.steps) == (expected.loss, expected.tokens, 12)
    assert not list((tmp_path / "killed").glob(".step-*"))
    for name in (
        "trainer/optimizer.safetensors",
        "trainer/random-0.safetensors",
        "trainer/state.json",
        "model.safetensors",
    ):
        assert (tmp_path / "killed/step-000012" / name).read_bytes() == (
            tmp_path / "whole/step-000012" / name
        ).read_bytes()


def _sgd(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    # AdamW divides by the gradient's size: where that is zero but for rounding, as for key biases, it shows rounding
    return torch.optim.SGD(model.parameters(), lr=options.learning_rate, momentum=0.9)


def _without_dropout(job: Job) -> Job:
    for module in job.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return job


def test_micro_batches_are_one_batch(tmp_path: Path) -> None:
    whole, parts = (replace(_without_dropout(_job()), optimizer=_sgd) for _ in range(2))
    train(whole, replace(FAST, learning_rate=0.1, batch_size=8), tmp_path / "a", Hooks())
    train(parts, replace(FAST, learning_rate=0.1, batch_size=2, accumulation=4), tmp_path / "b", Hooks())
    for a, b in zip(_weights(whole.model).values(), _weights(parts.model).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_training_learns_and_the_history_says_so(tmp_path: Path) -> None:
    job = _job()
    lines = []
    options = replace(FAST, max_steps=150, eval_every=50, save_every=0, log_every=25)
    result = train(job, options, tmp_path, Hooks(record=lines.append))
    assert result.initial_loss == pytest.approx(math.log(VOCAB), abs=0.3)
    assert math.log(2) - 0.05 < result.loss < 1.6  # the language has one bit per token
    assert [record.step for record in lines] == [0, 25, 50, 75, 100, 125, 150]
    assert all(set(record.terms) == {"lm"} for record in lines[1:])
    assert result.tokens == 150 * 4 * (LENGTH - 1)
    reloaded = GPT2LMHeadModel.from_pretrained(tmp_path / "step-000150").eval()
    again = evaluate(reloaded, job.evaluation, "causal", 4, torch.device("cpu"))
    assert again == result.loss


def test_masked_models_train_on_the_same_masks_every_time(tmp_path: Path) -> None:
    data = _data(task="masked")
    first, second = data.batch([3, 1], 7), data.batch([1, 3], 7)
    assert torch.equal(first["input_ids"].flip(0), second["input_ids"])
    assert not torch.equal(first["labels"], data.batch([3, 1], 8)["labels"])
    asked = first["labels"] != IGNORE
    assert torch.equal(first["labels"][asked], data.ids[[3, 1]][asked])
    assert asked.any(1).all()
    many = [data.batch(range(24), draw) for draw in range(200)]
    labels = torch.stack([batch["labels"] for batch in many]) != IGNORE
    hidden = torch.stack([batch["input_ids"] for batch in many])
    assert labels.float().mean() == pytest.approx(0.15, abs=0.02)
    assert (hidden[labels] == 3).float().mean() == pytest.approx(0.8, abs=0.03)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    result = train(_job(BertForMaskedLM(config), data), replace(FAST, max_steps=60, save_every=0), tmp_path, Hooks())
    assert result.loss < result.initial_loss - 0.3


def test_patience_ends_the_run_and_gives_the_best_weights_back(tmp_path: Path) -> None:
    data = _data(4)  # four sequences are soon learnt by heart, and the evaluation loss rises
    job = Job(_gpt(width=32), "causal", data, _data(40, seed=9), _save, _load, Plain(), adamw)
    options = replace(FAST, max_steps=400, eval_every=10, save_every=0, patience=3, schedule="constant")
    result = train(job, options, tmp_path, Hooks())
    assert result.stopped == "patience"
    assert result.steps < 400
    assert result.loss == result.best_loss == min(r.eval_loss for r in result.history if r.eval_loss is not None)
    assert evaluate(job.model, job.evaluation, "causal", 4, torch.device("cpu")) == pytest.approx(result.loss, rel=1e-6)


def test_time_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    result = train(_job(), replace(FAST, max_steps=1000, save_every=0, max_seconds=0.0), tmp_path, Hooks())
    assert (result.stopped, result.steps) == ("time", 1)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000001"]


def test_divergence_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(AnalysisIncomplete, match=r"diverged at step \d+: .*checkpoint"):
        train(_job(), replace(FAST, learning_rate=1e30, max_grad_norm=0.0, warmup_steps=0), tmp_path, Hooks())


@pytest.mark.parametrize("damage", ["cut", "missing", "schema", "other-model", "other-batch"])
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    train(_job(), FAST, tmp_path, Hooks())
    folder = tmp_path / "step-000008"
    state = folder / checkpoint.STATE
    job, options = _job(), FAST
    if damage == "cut":
        state.write_text(state.read_text()[:100])
    elif damage == "missing":
        (folder / checkpoint.OPTIMIZER).unlink()
    elif damage == "schema":
        state.write_text(json.dumps(json.loads(state.read_text()) | {"schema": "cohom.trainer/0"}))
    elif damage == "other-batch":
        options = replace(FAST, batch_size=3)
    else:
        job = replace(job, model=_gpt(), optimizer=lambda model, o: torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(InputRefused, match="checkpoint"):
        train(job, options, tmp_path, Hooks(), folder)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(_job(), replace(FAST, save_every=2, keep=2), tmp_path, Hooks())
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000010", "step-000012"]


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training_loop import FAST, Hooks, _job, _sgd, _without_dropout, train
for name, optimizer in (("adamw", None), ("sgd", _sgd)):
    job = _without_dropout(_job())
    job = replace(job, optimizer=optimizer) if optimizer else job
    result = train(job, replace(FAST, batch_size=int(sys.argv[1])), Path(sys.argv[2]) / name, Hooks())
    print(name, repr(result.loss), flush=True)
"""


def test_two_processes_equal_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    # `accelerate launch --cpu` starts one process whatever --num_processes says (1.15); torchrun starts them all
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    losses = {}
    for processes, batch in ((1, 4), (2, 2)):
        command = [*launch, "--nproc-per-node", str(processes), str(script), str(batch), str(tmp_path / str(processes))]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("adamw", "sgd"))]
        losses[processes] = {name: float(loss) for name, loss in lines}
    assert losses[2] == pytest.approx(losses[1], abs=1e-5)
    one, two = (load_file(tmp_path / name / "sgd/step-000012/model.safetensors") for name in ("1", "2"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "2/sgd/step-000012/trainer/random-1.safetensors").exists()


def test_order_visits_every_sequence_once_a_pass() -> None:
    order = Order(10, seed=3)
    whole = order.indices(0, 35)
    assert [sorted(whole[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert whole[:10] != whole[10:20]
    assert Order(10, seed=3).indices(13, 9) == whole[13:22]
    assert Order(10, seed=4).indices(0, 10) != whole[:10]


def test_packing_loses_no_token_inside_and_marks_ends() -> None:
    rows = [[5, 6, 7], [8], [9, 10, 11, 12]]
    assert pack(rows, 4, None, 1).tolist() == [[5, 6, 7, 1], [8, 1, 9, 10]]
    assert pack(rows, 4, 2, 3).tolist() == [[2, 5, 6, 3], [2, 7, 8, 3], [2, 9, 10, 3], [2, 11, 12, 3]]
    with pytest.raises(InputRefused, match="too few for one block"):
        pack([[1, 2]], 8, None, 1)


def test_schedules_rise_and_fall_as_written() -> None:
    options = TrainOptions(max_steps=110, warmup_steps=10, learning_rate=1.0, min_lr_ratio=0.0)
    assert [learning_rate(k, options) for k in (0, 9)] == [0.1, 1.0]
    assert learning_rate(60, options) == pytest.approx(0.5)
    assert learning_rate(35, replace(options, schedule="linear")) == pytest.approx(0.75)
    stable = replace(options, schedule="wsd")
    assert [learning_rate(k, stable) for k in (10, 60, 90)] == [1.0, 1.0, 1.0]
    assert learning_rate(95, stable) == pytest.approx(0.5)
    assert learning_rate(10**6, replace(stable, min_lr_ratio=0.1)) == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", [{"max_steps": 0}, {"ema_decay": 1.0}, {"learning_rate": 0.0}, {"warmup_steps": 99}])
def test_options_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        replace(FAST, **wrong)
