"""Other ways to run the same model, measured on the same inputs against the same float64 reference.

Emulated ones follow a stated semantics on the captured program; the others run the module itself with PyTorch's own
kernels on this machine. Each says which, and its bytes are counted by one rule for all (`precision.traffic`).
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from cohomcli.precision.autocast import autocast_flow
from cohomcli.precision.capture import Captured, Example, output_name
from cohomcli.precision.conversions import run_flow
from cohomcli.precision.costs import bytes_of
from cohomcli.precision.execute import Emulation, Emulator, uniform
from cohomcli.precision.formats import get_format
from cohomcli.precision.output_norm import OutputNorm, Outputs
from cohomcli.precision.result import Baseline, BytesRow
from cohomcli.precision.spec import ComputationGraph
from cohomcli.precision.traffic import Bytes, count

UNIFORM = ("fp32", "bf16", "fp16")
_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_METHODS = {"fp16": "half", "bf16": "bfloat16"}
_OWN_CASTS = "bytes by the op lists: casts in the model's own code are not counted"
# A recording sees ops below the level where autocast looks at them: under these names its lists know them.
_ABOVE = {
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "convolution": "_convolution",
    "mkldnn_convolution": "_convolution",
    "_scaled_dot_product_flash_attention_for_cpu": "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math_for_mps": "scaled_dot_product_attention",
    "_fused_rms_norm": "rms_norm",
}


@dataclass(frozen=True)
class _Subject:
    model: nn.Module
    captured: Captured
    inputs: Sequence[Any]
    norm: OutputNorm


def baselines(
    model: nn.Module,
    captured: Captured,
    inputs: Sequence[Any],
    norm: OutputNorm,
    emulate: Emulator,
    formats: Sequence[str] = UNIFORM,
) -> tuple[Baseline, ...]:
    """Uniform `formats` (emulated stores), `.half()`, `.bfloat16()` and CPU autocast (run), CUDA autocast (emulated).

    `norm` is bound to the float64 outputs of `captured`, the capture of `model`, on `inputs`. A way that cannot be run
    here has no error and a note that says why. The module is left as it is; at most one copy of it, in 16 bits, is
    alive at a time.
    """
    subject = _Subject(model, captured, inputs, norm)
    found = [_uniform(subject, emulate, fmt) for fmt in formats]
    for fmt in _HALVES:
        found += [_converted(subject, fmt), _autocast(subject, fmt), _autocast_cuda(subject, fmt)]
    return tuple(found)


def bytes_row(counted: Bytes) -> BytesRow:
    """The counts of a pass as results carry them."""
    return BytesRow(
        total=counted.total,
        weights=counted.weights,
        activations=counted.activations_traffic,
        casts=counted.casts,
        n_casts=counted.n_casts,
        peak_memory=counted.memory,
    )


# --- emulated ---------------------------------------------------------------------------------------------------------


def _uniform(subject: _Subject, emulate: Emulator, fmt: str) -> Baseline:
    plan = uniform(subject.captured, fmt)
    found = Baseline(
        name=f"uniform-{fmt}",
        label=f"uniform {fmt}",
        semantics=f"emulated: every op's result and every weight rounded once to {fmt}, computed in float32",
        error=None,
        finite=False,
        bytes=bytes_row(bytes_of(subject.captured.graph, plan)),
    )
    return _with_emulations(found, subject, [emulate(plan, x) for x in subject.inputs])


def _autocast_cuda(subject: _Subject, fmt: str) -> Baseline:
    flow = autocast_flow(_as_called(subject.captured), fmt, "cuda")
    found = Baseline(
        name=f"autocast-cuda-{fmt}",
        label=f"autocast {fmt} (CUDA lists)",
        semantics=(
            f"emulated: torch.autocast('cuda', {get_format(fmt).dtype}) by its op lists; float32 weights, ops on the "
            "list read rounded copies, computed in float32"
        ),
        error=None,
        finite=False,
        bytes=bytes_row(count(subject.captured.graph, flow)),
        note=_OWN_CASTS,
    )
    return _with_emulations(found, subject, [run_flow(subject.captured, x, flow) for x in subject.inputs])


def _with_emulations(found: Baseline, subject: _Subject, emulations: Sequence[Emulation]) -> Baseline:
    overflowed = {v for emulation in emulations for v in emulation.overflow}
    error = subject.norm.error([emulation.outputs for emulation in emulations])
    return replace(_with_error(found, error), n_overflows=len(overflowed))


def _with_error(found: Baseline, error: float) -> Baseline:
    finite = math.isfinite(error)
    return replace(found, error=error if finite else None, finite=finite)


def _as_called(captured: Captured) -> ComputationGraph:
    """The graph with its ops under the names by which autocast knows them."""
    if not captured.fallback:
        return captured.graph
    return replace(
        captured.graph,
        vertices=tuple(replace(v, target=_above(v.target)) for v in captured.graph.vertices),
    )


def _above(target: str) -> str:
    return re.sub(r"(?<=aten\.)\w+", lambda name: _ABOVE.get(name.group(), name.group()), target, count=1)


# --- run --------------------------------------------------------------------------------------------------------------


def _converted(subject: _Subject, fmt: str) -> Baseline:
    """The module after `.half()` or `.bfloat16()`."""
    method = _METHODS[fmt]
    found = Baseline(
        name=method,
        label=f"model.{method}()",
        semantics=f"run: the module itself after .{method}(), PyTorch's CPU kernels",
        error=None,
        finite=False,
        bytes=bytes_row(bytes_of(subject.captured.graph, uniform(subject.captured, fmt))),
        note=f"bytes as if all of it were {fmt}: casts in the model's own code are not counted",
    )

    def prepare() -> nn.Module:
        return converted_copy(subject.model, _HALVES[fmt])

    return _measured(found, subject, prepare, _HALVES[fmt])


def _autocast(subject: _Subject, fmt: str) -> Baseline:
    flow = autocast_flow(_as_called(subject.captured), fmt, "cpu")
    dtype = _HALVES[fmt]
    found = Baseline(
        name=f"autocast-{fmt}",
        label=f"autocast {fmt} (CPU)",
        semantics=f"run: the module itself under torch.autocast('cpu', {get_format(fmt).dtype}), PyTorch's CPU kernels",
        error=None,
        finite=False,
        bytes=bytes_row(count(subject.captured.graph, flow)),
        note=_OWN_CASTS,
    )
    return _measured(found, subject, lambda: subject.model, None, torch.autocast("cpu", dtype=dtype))


def _measured(
    found: Baseline,
    subject: _Subject,
    prepare: Callable[[], nn.Module],
    cast_inputs: torch.dtype | None,
    context: AbstractContextManager[Any] | None = None,
) -> Baseline:
    try:
        model = prepare()
        outputs = []
        with torch.no_grad(), context or nullcontext():
            for x in subject.inputs:
                outputs.append(named_outputs(subject.captured, _call(model, x, cast_inputs)))
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        # PyTorch has no kernel for some op in this dtype, or the model's code mixes dtypes
        first = (str(error).strip().splitlines() or [""])[0]
        return replace(found, note=f"cannot be run here: {type(error).__name__}: {first[:160]}", ran=False)
    measured = _with_error(found, subject.norm.error(outputs))
    baked = any(v.fixed == "mask constant" for v in subject.captured.graph.vertices)
    if not measured.finite and cast_inputs is not None and baked:
        note = "the float32 mask constant in the program leaves the range of 16 bits: this says nothing of the model"
        return replace(measured, note="; ".join(filter(None, (note, measured.note))))
    return measured


def _call(model: nn.Module, inputs: Any, dtype: torch.dtype | None) -> Any:
    example = inputs if isinstance(inputs, Example) else _example(inputs)

    def cast(leaf: Any) -> Any:
        real = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if real and dtype is not None else leaf

    args, kwargs = pytree.tree_map(cast, (example.args, dict(example.kwargs or {})))
    return model(*args, **kwargs)


def _example(inputs: Any) -> Example:
    return Example((), dict(inputs)) if hasattr(inputs, "keys") else Example(tuple(inputs))


def named_outputs(captured: Captured, result: Any) -> Outputs:
    """The captured outputs, in their order, out of what the module returns, in float32.

    Raises:
        KeyError: the module returned no output of that name.
    """
    found = {output_name(path): leaf for path, leaf in pytree.tree_flatten_with_path(result)[0]}
    return tuple(found[name].float() for name, _ in captured.program.outputs)


def converted_outputs(captured: Captured, model: nn.Module, dtype: torch.dtype, inputs: Any) -> Outputs:
    """The captured outputs in float32 of a copy of `model` converted to `dtype`, run by PyTorch's own kernels.

    Raises:
        RuntimeError, TypeError, ValueError, KeyError, AttributeError: PyTorch cannot run it in that dtype.
    """
    with torch.no_grad():
        return named_outputs(captured, _call(converted_copy(model, dtype), inputs, dtype))


def converted_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A deep copy of `model` with its real parameters and buffers in `dtype`; no float32 copy is made on the way.

    Tied parameters stay tied.
    """
    memo: dict[int, Any] = {}
    for tensor in _tensors(model):
        if tensor.is_floating_point() and id(tensor) not in memo:
            cast = tensor.detach().to(dtype)
            parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(cast, requires_grad=False) if parameter else cast
    copied: nn.Module = copy.deepcopy(model, memo)
    return copied.to(dtype)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
