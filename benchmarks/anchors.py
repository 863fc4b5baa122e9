"""Our plans beside the tools that pick fp16 nodes of an ONNX graph: same models, same input, same tolerances.

    python -m benchmarks.anchors                                  # four small models, three tolerances
    python -m benchmarks.anchors --model bert --eps 1e-3 --save anchors.jsonl

Tools: `auto_convert_mixed_precision` of onnxconverter-common, which bisects the node list until the converted graph's
outputs are within the tolerance, ModelOpt AutoCast with its defaults, which has no tolerance and is run once, and ours
with fp32 and fp16. All see one input, and success is an error of at most eps (relative L2 against float64) on it: the
tools' graphs and our exported one run in ONNX Runtime on the CPU. Only tolerances that fp32 keeps are asked for.

Evaluations are whole runs of the model, and all start from a captured graph. Of a tool: every run of an ONNX Runtime
session while it works. Of ours: all floating-point operations (ranges, records, reference, adjoint, emulated plan), as
PyTorch's FlopCounterMode counts them, over those of one forward pass; a backward pass is about two. Ours has one
adjoint and one round, whose plan is made for 0.6 eps: one adjoint is a rough estimate, and ONNX Runtime's kernels round
elsewhere than the emulation. Needs onnx, onnxscript and onnxruntime; a tool is left out where
it is not installed. `weights` are the bytes of the graph's weights, `casts` its Cast nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.subjects import Size, Subject, random_subject
from cohomcli.precision.analysis import prepare
from cohomcli.precision.assignment import solve
from cohomcli.precision.capture import Captured, capture
from cohomcli.precision.execute import run, uniform
from cohomcli.precision.exports import onnx_model
from cohomcli.precision.exports.base import relative_error
from cohomcli.precision.exports.traced import NativeModel
from cohomcli.precision.loop import problem_for
from cohomcli.precision.options import PrecisionOptions
from cohomcli.precision.problem import plan_of
from cohomcli.precision.spec import Plan
from cohomcli.precision.summary import Inputs

MODELS = ("gpt2", "bert", "llama", "vit")
EPSILONS = (1e-2, 1e-3, 3e-4)
SIZE = Size(width=32, tokens=8, layers=2)
SHARE = 0.6  # of eps that ours is planned for
ROW = "{:<8} {:>8} {:<14} {:>8} {:>10} {:>11} {:>9} {:>6} {:>8}"
HEAD = ("model", "eps", "tool", "success", "error", "evaluations", "weights", "casts", "CPU s")


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one pair; `error` in ONNX Runtime, `emulated` under our semantics (ours only)."""

    model: str
    epsilon: float
    tool: str
    success: bool
    error: float | None
    evaluations: float
    weights: int | None
    casts: int | None
    seconds: float
    note: str = ""
    emulated: float | None = None


@dataclass(frozen=True)
class Case:
    """A model with one input: its float32 ONNX file, what to feed it, and the float64 outputs."""

    subject: Subject
    captured: Captured
    file: Path
    feed: dict[str, Any]
    reference: list[torch.Tensor]


def case_of(name: str, folder: Path) -> Case:
    """One of the random models, exported in float32."""
    import onnx

    subject = random_subject(name, SIZE)
    example = subject.calibration[0]
    captured = capture(subject.model, example, subject.outputs)
    graph = onnx_model.build(NativeModel(uniform(captured, "fp32"), captured), captured)
    onnx_model.save(graph, folder / f"{name}.onnx")
    names = [given.name for given in onnx.load(folder / f"{name}.onnx").graph.input]
    bound = captured.bind(example)
    feed = {n: bound[a.slot].numpy() for n, a in zip(names, captured.program.arguments, strict=True)}
    return Case(subject, captured, folder / f"{name}.onnx", feed, list(run(captured, example, torch.float64)))


# --- the tools --------------------------------------------------------------------------------------------------------


def bisected(case: Case, epsilon: float) -> Any:
    """onnxconverter-common's graph, whose validation is our own norm.

    Raises:
        ValueError: the tool gives up.
    """
    import onnx
    from onnxconverter_common.auto_mixed_precision import auto_convert_mixed_precision

    def within(_: Any, found: Sequence[Any]) -> bool:
        return _error(case, found) <= epsilon

    return auto_convert_mixed_precision(onnx.load(case.file), case.feed, within, keep_io_types=True)


def autocast(case: Case, epsilon: float) -> Any:
    """ModelOpt AutoCast's graph: its rules, and our input as its calibration data."""
    from modelopt.onnx.autocast import convert_to_mixed_precision

    data = case.file.with_suffix(".npz")
    np.savez(data, **case.feed)
    return convert_to_mixed_precision(str(case.file), "fp16", keep_io_types=True, calibration_data=str(data))


def with_tool(name: str, make: Callable[[Case, float], Any], case: Case, epsilon: float) -> Outcome:
    """One tool on one pair; its failure is a result."""
    import onnx

    begun, runs, made, note = time.process_time(), _Runs(), None, ""
    with _quiet(), runs:
        try:
            made = make(case, epsilon)
        except Exception as error:  # noqa: BLE001 -- whatever a tool raises is its result
            note = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    seconds = time.process_time() - begun
    if made is None:
        return Outcome(case.subject.name, epsilon, name, False, None, runs.count, None, None, seconds, note)
    file = case.file.with_suffix(f".{name}.onnx")
    onnx.save(made, file)
    return _judged(case, epsilon, name, file, (runs.count, seconds))


def ours(case: Case, epsilon: float, n_probes: int) -> Outcome:
    """Our plan for the same input: ranges, adjoints, closed loop, and the exported graph in ONNX Runtime."""
    begun = time.process_time()
    counter = FlopCounterMode(display=False)
    with counter:
        plan, emulated = planned(case, epsilon, n_probes)
    evaluations = counter.get_total_flops() / _flops_of_one_run(case)
    seconds = time.process_time() - begun
    file = case.file.with_suffix(".cohom.onnx")
    onnx_model.save(onnx_model.build(NativeModel(plan, case.captured), case.captured), file)
    found = _judged(case, epsilon, "cohom", file, (evaluations, seconds))
    return Outcome(**{**asdict(found), "emulated": emulated, "success": found.success and emulated <= epsilon})


def planned(case: Case, epsilon: float, n_probes: int) -> tuple[Plan, float]:
    """Our plan for one input after one round, and its error there under the semantics `store`.

    It is fp32 everywhere when the round's plan misses epsilon.
    """
    calls = case.subject.calibration[:1]
    options = PrecisionOptions(epsilon=epsilon, formats=("fp32", "fp16"), n_probes=n_probes)
    setting, _ = prepare(case.captured, Inputs(calls, calls, ""), options)
    solution = solve(problem_for(setting, options, SHARE * epsilon), options.time_limit)
    wide = uniform(case.captured, "fp32")
    for plan in (wide if solution.choice is None else plan_of(setting.graph, options.formats, solution), wide):
        error = setting.norm.error([setting.emulate(plan, calls[0]).outputs])
        if error <= epsilon:
            break
    return plan, error


def _flops_of_one_run(case: Case) -> int:
    with FlopCounterMode(display=False) as counter:
        run(case.captured, case.subject.calibration[0])
    return int(counter.get_total_flops())


# --- measuring --------------------------------------------------------------------------------------------------------


class _Runs:
    """Counts the runs of all ONNX Runtime sessions while it is entered."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> _Runs:
        from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

        self._class, self._run = InferenceSession, InferenceSession.run

        def counted(session: Any, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return self._run(session, *args, **kwargs)

        InferenceSession.run = counted
        return self

    def __exit__(self, *_: object) -> None:
        self._class.run = self._run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tools print what they do."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _judged(case: Case, epsilon: float, tool: str, file: Path, cost: tuple[float, float]) -> Outcome:
    """The error of a file in ONNX Runtime, the bytes of its weights and its conversions."""
    import onnx

    name = case.subject.name
    try:
        error = _error(case, _outputs(file, case.feed))
    except Exception as failure:  # noqa: BLE001 -- onnxruntime's errors have no common class
        return Outcome(
            name, epsilon, tool, False, None, cost[0], None, None, cost[1], str(failure).splitlines()[0][:120]
        )
    graph = onnx.load(file).graph
    weights = sum(onnx.numpy_helper.to_array(i).nbytes for i in graph.initializer)
    casts = sum(node.op_type == "Cast" for node in graph.node)
    return Outcome(name, epsilon, tool, error <= epsilon, error, cost[0], weights, casts, cost[1])


def _outputs(file: Path, feed: dict[str, Any]) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, feed)
    return found


def _error(case: Case, found: Sequence[Any]) -> float:
    """Relative L2 against float64; inf where an output is not finite."""
    error = relative_error([torch.from_numpy(np.asarray(y, dtype=np.float64)) for y in found], case.reference)
    return error if np.isfinite(error) else float("inf")


TOOLS: dict[str, tuple[str, Callable[[Case, float], Any]]] = {
    "onnxconverter": ("onnxconverter_common", bisected),
    "modelopt": ("modelopt", autocast),
}


def pairs(names: Sequence[str], epsilons: Sequence[float], n_probes: int) -> Iterator[Outcome]:
    """Every tool that is installed on every pair that fp32 satisfies."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            case = case_of(name, Path(folder))
            plain = _error(case, _outputs(case.file, case.feed))
            for epsilon in epsilons:
                if plain > epsilon:
                    continue
                yield ours(case, epsilon, n_probes)
                for tool, (package, make) in TOOLS.items():
                    if find_spec(package) is not None:
                        yield with_tool(tool, make, case, epsilon)


def line(found: Outcome) -> str:
    """A row of the table."""
    return ROW.format(
        found.model,
        f"{found.epsilon:.0e}",
        found.tool,
        "yes" if found.success else "no",
        "-" if found.error is None else f"{found.error:.2e}",
        f"{found.evaluations:.1f}",
        "-" if found.weights is None else found.weights,
        "-" if found.casts is None else found.casts,
        f"{found.seconds:.1f}",
    ) + (f"  {found.note}" if found.note else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, one row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"of the random models (repeatable) [{', '.join(MODELS)}]")
    parser.add_argument("--eps", action="append", type=float, help="relative L2 tolerance (repeatable)")
    parser.add_argument("--probes", type=int, default=1, help="random adjoints of ours")
    parser.add_argument("--save", type=Path, help="append each row to this file as JSON")
    wished = parser.parse_args(arguments)
    for tool, (package, _) in TOOLS.items():
        if find_spec(package) is None:
            print(f"{tool} is left out: {package} is not installed", file=sys.stderr)
    print(ROW.format(*HEAD), flush=True)
    for found in pairs(wished.model or MODELS, wished.eps or EPSILONS, wished.probes):
        print(line(found), flush=True)
        if wished.save:
            with wished.save.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
