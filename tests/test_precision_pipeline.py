"""The precision engine's parts together on the built-in models: capture, predict, solve, emulate, measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from cohomcli import assets
from cohomcli.precision.capture import Captured, capture
from cohomcli.precision.cohomology import label_cohomology
from cohomcli.precision.execute import Emulator, run, uniform
from cohomcli.precision.inputs import TextOptions, text_inputs
from cohomcli.precision.output_norm import bind
from cohomcli.precision.problem import build_problem, plan_of
from cohomcli.precision.ranges import admissibility, ranges
from cohomcli.precision.sensitivity import SensitivityOptions, predict, sensitivity
from cohomcli.precision.sheaf import label_sheaf
from cohomcli.precision.spec import Admissibility, Plan

FORMATS = ("fp32", "bf16", "fp16")
CLASSES = {"tiny-gpt": AutoModelForCausalLM, "tiny-bert": AutoModelForMaskedLM}


class _Model:
    def __init__(self, name: str) -> None:
        folder = assets.model_dir(name)
        torch.manual_seed(0)
        self.model = CLASSES[name].from_pretrained(folder, attn_implementation="eager").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = next(iter(sorted(assets.corpus_dir("calibration").glob("*.txt")))).read_text(encoding="utf-8")
        self.inputs = text_inputs(self.model, tokenizer, text.split("\n\n")[1:3], TextOptions(length=24))
        self.captured: Captured = capture(self.model, self.inputs[0])
        self.admissible: Admissibility = admissibility(self.captured.graph, ranges(self.captured, self.inputs), FORMATS)
        self.found = sensitivity(self.captured, self.inputs, SensitivityOptions(FORMATS), self.admissible)
        self.norm = bind(self.captured, self.inputs, "rel-l2")
        self.emulate = Emulator(self.captured)

    def error(self, plan: Plan) -> float:
        return self.norm.error([self.emulate(plan, x).outputs for x in self.inputs])

    def random_plan(self, rng: np.random.Generator) -> Plan:
        shares = rng.dirichlet(np.ones(len(FORMATS)))
        chosen = []
        for vertex in self.captured.graph.vertices:
            weights = shares * self.admissible.allowed[vertex.index]
            chosen.append("" if vertex.fixed else str(rng.choice(FORMATS, p=weights / weights.sum())))
        return Plan(tuple(chosen))


@pytest.fixture(scope="module", params=sorted(CLASSES))
def subject(request: pytest.FixtureRequest) -> _Model:
    return _Model(request.param)


def test_replay_is_the_module_bit_for_bit(subject: _Model) -> None:
    assert not subject.captured.fallback
    with torch.no_grad():
        direct = subject.model(**subject.inputs[1].kwargs).logits
    assert torch.equal(run(subject.captured, subject.inputs[1])[0], direct)


def test_uniform_emulation_is_what_rounding_every_store_of_the_module_gives(subject: _Model) -> None:
    fp32 = subject.error(uniform(subject.captured, "fp32"))
    bf16 = subject.error(uniform(subject.captured, "bf16"))
    fp16 = subject.error(uniform(subject.captured, "fp16"))
    assert 0 < fp32 < 1e-5 < fp16 < bf16 < 0.2
    assert 4 < bf16 / fp16 < 16  # three bits fewer: a factor 8, give or take


def test_predicted_error_is_the_measured_one_within_a_quarter(subject: _Model) -> None:
    rng = np.random.default_rng(5)
    plans = [subject.random_plan(rng) for _ in range(20)]
    ratios = np.array([predict(subject.found, plan) / subject.error(plan) for plan in plans])
    assert np.mean((ratios >= 0.8) & (ratios <= 1.25)) >= 0.95, ratios


@pytest.mark.parametrize("epsilon", [3e-3, 1e-3])
def test_a_solved_plan_is_cheaper_than_fp32_and_keeps_its_promise(subject: _Model, epsilon: float) -> None:
    from cohomcli.precision.assignment import solve
    from cohomcli.precision.certificate import check

    graph = subject.captured.graph
    problem = build_problem(graph, subject.found, subject.admissible, epsilon)
    solution = solve(problem, time_limit=20.0)
    assert solution.choice is not None
    assert solution.gap is not None
    assert solution.gap <= 0.02
    assert solution.certificate is not None
    assert check(problem, solution.certificate)
    plan = plan_of(graph, FORMATS, solution)
    assert predict(subject.found, plan) <= epsilon * (1 + 1e-9)
    assert subject.error(plan) <= 1.25 * epsilon
    assert sum(fmt in ("bf16", "fp16") for fmt in plan.formats) > 0.2 * len(plan.formats)


def test_the_label_sheaf_of_the_captured_graph_has_equal_rank_and_formula(subject: _Model) -> None:
    found = label_cohomology(label_sheaf(subject.captured.graph, subject.admissible))
    assert found.euler == found.h0 - found.h1
    assert found.betti1 > 0  # residual connections close loops, whatever the formats
