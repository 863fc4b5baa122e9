"""Several calls run side by side give what single calls give."""

from __future__ import annotations

import pytest
import torch

from cohomcli.errors import UsageError
from cohomcli.precision.capture import Example, capture
from cohomcli.precision.execute import Emulator, run, run_many, uniform
from cohomcli.precision.spec import Plan
from tests.test_precision_capture import call_of, pico


def test_calls_side_by_side_are_single_calls_bit_for_bit() -> None:
    """With tied weights, of which every one is stored once for all calls."""
    captured = capture(pico("gpt2"), call_of("gpt2"))
    first = call_of("gpt2")
    examples = [Example((), {**first, "input_ids": first["input_ids"].roll(n, -1)}) for n in range(3)]
    entered: list[int] = []

    def count(vertex: int, value: torch.Tensor) -> torch.Tensor:
        entered.append(vertex)
        return value

    together = run_many(captured, examples, torch.float64, count)
    for example, outputs in zip(examples, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(run(captured, example, torch.float64), outputs, strict=True))
    assert not torch.equal(together[0][0], together[1][0])
    weights = [v.index for v in captured.graph.vertices if v.kind == "weight"]
    assert max(entered.count(v) for v in weights) < len(examples)  # a tied weight may leave and enter again

    emulate, plan = Emulator(captured), uniform(captured, "bf16")
    for example, outputs in zip(examples, emulate.outputs(plan, examples), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(emulate(plan, example).outputs, outputs, strict=True))
    assert run_many(captured, []) == []


def test_side_by_side_refuses_what_single_calls_refuse() -> None:
    captured = capture(pico("gpt2"), call_of("gpt2"))
    with pytest.raises(UsageError, match=r"not torch\.bfloat16"):
        run_many(captured, [call_of("gpt2")], torch.bfloat16)
    with pytest.raises(UsageError, match="the plan has 1 formats"):
        Emulator(captured).outputs(Plan(("fp32",)), [call_of("gpt2")])
