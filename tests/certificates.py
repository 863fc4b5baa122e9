"""One small certificate of every kind, for tests and for fuzzing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from cohomcli.precision.assignment import solve
from cohomcli.precision.capture import Example, capture
from cohomcli.precision.execute import uniform
from cohomcli.precision.prove.box import certify_box
from cohomcli.precision.prove.enclosure import write_enclosure
from cohomcli.precision.prove.optimality import write_optimality
from cohomcli.precision.prove.package import Package
from cohomcli.precision.prove.refute import RefuteOptions, refute
from cohomcli.precision.spec import Problem
from tests.provemodels import ExpExp


def write_certificates(folder: Path) -> list[Path]:
    """Write them, with the files they name, into `folder`."""
    x = Example((torch.tensor([2.3]),))
    captured = capture(ExpExp().eval(), x)
    package = Package(folder, "exp-exp", captured, {"versions": {"cohom": "0"}})
    refute(captured, [x], RefuteOptions(1.0, "max-abs", ("bf16",)), package)
    write_enclosure(captured, x, ("output", [0]), package)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    call = (torch.randn(1, 2),)
    captured = capture(net, call)
    certify_box(captured, call, 0.1, uniform(captured, "bf16"), Package(folder, "net", captured, {}))
    posed = Problem(
        cost=np.array([[4.0, 2.0], [4.0, 2.0]]), error=np.array([[0.0, 1.0], [0.0, 3.0]]),
        allowed=np.ones((2, 2), dtype=bool), edges=np.array([[0, 1]]), cast_cost=np.array([0.5]), budget=2.0,
    )  # fmt: skip
    write_optimality(Package(folder, "two", None, {}), posed, solve(posed, 2.0), ("wide", "narrow"), 0.1)
    return sorted(folder.glob("*.json"))
