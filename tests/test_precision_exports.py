"""Exports, each loaded back by its own tool where that is installed: what the file says is what the plan says."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinymodels
import torch
from torch import nn

from cohomcli.errors import UsageError
from cohomcli.precision.capture import Captured, Example, capture
from cohomcli.precision.execute import Emulator, uniform
from cohomcli.precision.explicit import apply
from cohomcli.precision.exports import EXPORTERS
from cohomcli.precision.exports.base import Exported, Source, flat_outputs, linear_modules, relative_error
from cohomcli.precision.exports.traced import NativeModel, StoreModel, tensor_call
from cohomcli.precision.planfile import plan_file
from cohomcli.precision.spec import Plan
from cohomcli.precision.traffic import count, plan_flow

HALF, BYTES = ("fp32", "fp16", "bf16"), ("fp32", "bf16", "e4m3", "e5m2", "int8")
FLOATS = {1: np.float32, 10: np.float16, 11: np.float64, 16: np.float32}  # ONNX codes: float, half, double, bfloat16


@dataclass(frozen=True)
class Case:
    model: nn.Module
    example: Example
    captured: Captured

    def plan(self, formats: tuple[str, ...], seed: int = 0) -> Plan:
        """Any format anywhere; int8 for matrices only, no mask in a format without infinity."""
        rng, chosen = np.random.default_rng(seed), []
        for v in self.captured.graph.vertices:
            options = [f for f in formats if f != "int8" or (v.kind == "weight" and len(v.shape) > 1)]
            options = [f for f in options if f != "e4m3" or not v.mask_level]
            chosen.append("" if v.fixed else str(rng.choice(options)))
        return Plan(tuple(chosen))

    def source(self, plan: Plan) -> Source:
        return Source(self.model, self.captured, plan, plan_file(self.captured, plan, 1e-3))


def case_of(name: str) -> Case:
    if name == "cnn":
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)]
        example = Example((torch.randn(2, 3, 8, 8),))
        model: nn.Module = nn.Sequential(*layers).eval()
        return Case(model, example, capture(model, example))
    model = tinymodels.build(name)
    model.set_attn_implementation("eager")
    ids = torch.randint(4, tinymodels.VOCAB, (1, 7), generator=torch.Generator().manual_seed(0))
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    example = Example((), call if name in tinymodels.MASKED else {**call, "use_cache": False})
    return Case(model, example, capture(model, example))


CASES: dict[str, Case] = {}


@pytest.fixture(params=["cnn", "llama", "bert"])
def case(request: pytest.FixtureRequest) -> Case:
    return cached(request.param)


def cached(name: str) -> Case:
    if name not in CASES:
        CASES[name] = case_of(name)
    return CASES[name]


def export(name: str, source: Source, folder: Path) -> Exported:
    folder.mkdir()
    done: Exported = EXPORTERS.get(name)(source, folder)
    for file in done.files:
        assert (folder / file).is_file()
    return done


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


# --- the two arithmetics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formats", [HALF, BYTES], ids=["half", "bytes"])
def test_the_store_arithmetic_is_the_plans_bit_for_bit(case: Case, formats: tuple[str, ...]) -> None:
    for seed in range(2):
        plan = case.plan(formats, seed)
        call = tensor_call(case.example)
        found = flat_outputs(StoreModel(plan, case.captured)(*call.args, **(call.kwargs or {})))
        wanted = flat_outputs(apply(case.model, plan, case.captured)(*case.example.args, **(case.example.kwargs or {})))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_native_arithmetic_converts_what_the_plan_counts_and_stays_close(case: Case) -> None:
    plan = case.plan(HALF)
    model, call = NativeModel(plan, case.captured), tensor_call(case.example)
    assert model.n_casts == count(case.captured.graph, plan_flow(case.captured.graph, plan)).n_casts > 0
    found = flat_outputs(model(*call.args, **(call.kwargs or {})))
    exact = Emulator(case.captured)(uniform(case.captured, "fp32"), case.example).outputs
    store = Emulator(case.captured)(plan, case.example).outputs
    assert relative_error(found, store) <= 2 * relative_error(store, exact) + 1e-6
    planned = {n: p.format for n, p in plan_file(case.captured, plan).weights.items()}
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    for name, fmt in planned.items():
        assert model.weights.get_parameter(name).dtype == dtypes[fmt]


def test_formats_that_a_graph_cannot_have_are_refused(case: Case) -> None:
    with pytest.raises(UsageError, match="the plan has fp64"):
        StoreModel(uniform(case.captured, "fp64"), case.captured)
    with pytest.raises(UsageError, match="fp64, fp32, bf16 and fp16, and the plan e4m3"):
        NativeModel(case.plan(("fp32", "e4m3")), case.captured)


# --- torch and Hugging Face -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "formats"), [("llama", HALF), ("cnn", BYTES)])
def test_a_reloaded_program_has_the_plans_logits_bit_for_bit(
    name: str, formats: tuple[str, ...], tmp_path: Path
) -> None:
    case = cached(name)
    plan = case.plan(formats)
    done = export("torch", case.source(plan), tmp_path / "torch")
    program = torch.export.load(tmp_path / "torch" / "model.pt2")
    call = tensor_call(case.example)
    others = [x if not x.is_floating_point() else x + 1 for x in call.args]
    kwargs = {k: v.flip(-1) if k == "input_ids" else v for k, v in (call.kwargs or {}).items()}
    found = flat_outputs(program.module()(*others, **kwargs))
    again = Example(tuple(others), {**(case.example.kwargs or {}), **kwargs})
    wanted = Emulator(case.captured)(plan, again).outputs  # an input that the trace has not seen
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert "in every bit" in done.check
    assert any("_to_copy" in str(n.target) or "to.dtype" in str(n.target) for n in program.graph.nodes)


def test_a_reloaded_folder_has_its_logits_bit_for_bit(tmp_path: Path) -> None:
    case = cached("llama")
    done = export("hf", case.source(case.plan(HALF)), tmp_path / "hf")
    assert "in every bit" in done.check
    with pytest.raises(UsageError, match="is no transformers model"):
        export("hf", cached("cnn").source(cached("cnn").plan(HALF)), tmp_path / "cnn")


# --- ONNX -------------------------------------------------------------------------------------------------------------


@needs("onnx", "onnxscript", "onnxruntime")
@pytest.mark.parametrize("name", ["cnn", "llama", "bert"])
def test_an_onnx_graph_has_the_plans_casts_and_runs_in_onnxruntime(name: str, tmp_path: Path) -> None:
    import onnx

    case = cached(name)
    plan = case.plan(("fp32", "fp16"))
    done = export("onnx", case.source(plan), tmp_path / "onnx")
    casts, types = onnx_casts(tmp_path / "onnx" / "model.onnx")
    assert len(casts) == count(case.captured.graph, plan_flow(case.captured.graph, plan)).n_casts
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    held = [i for i in model.graph.initializer if i.name.startswith("weights.") and i.data_type in FLOATS]
    initial = Counter(FLOATS[i.data_type] for i in held)
    planned = plan_file(case.captured, plan).weights.values()
    assert initial == Counter({np.float32: sum(w.format == "fp32" for w in planned),
                               np.float16: sum(w.format == "fp16" for w in planned)})  # fmt: skip
    gap = float(done.check.rpartition("by ")[2].split()[0])
    exact = Emulator(case.captured)(uniform(case.captured, "fp32"), case.example).outputs
    store = Emulator(case.captured)(plan, case.example).outputs
    assert gap <= 2 * relative_error(store, exact)
    nodes = json.loads((tmp_path / "onnx" / "nodes.json").read_text())
    formats = {v.name: plan.formats[v.index] for v in case.captured.graph.vertices}
    codes = {"fp32": 1, "fp16": 10}
    graph = {n.name: n for n in model.graph.node}
    judged = 0
    for name_of_node, entry in nodes.items():
        node, wanted = graph[name_of_node], entry.get("cast to") or formats[entry["op"]]
        # An op's nodes are all in its format; a conversion may have a Max before its Cast, where masks saturate.
        if node.op_type in ("Constant", "Max") or types.get(node.output[0]) not in (1, 10) or not wanted:
            continue
        assert types[node.output[0]] == codes[wanted], node.name
        judged += 1
    assert judged > len(casts)
    assert str(Path.cwd()) not in str(model)


@needs("onnx", "onnxscript", "onnxruntime")
def test_a_plan_with_bf16_is_written_although_onnxruntime_has_no_kernels(tmp_path: Path) -> None:
    import onnx.reference

    case = cached("llama")
    plan = case.plan(HALF)
    done = export("onnx", case.source(plan), tmp_path / "onnx")
    assert "not run here: ONNX Runtime cannot run it" in done.check
    casts, _ = onnx_casts(tmp_path / "onnx" / "model.onnx")
    assert len(casts) == count(case.captured.graph, plan_flow(case.captured.graph, plan)).n_casts
    model = onnx.load(tmp_path / "onnx" / "model.onnx")
    assert 16 in {i.data_type for i in model.graph.initializer}


def onnx_casts(file: Path) -> tuple[list[str], dict[str, int]]:
    """Casts from one float type to another, and the type of every value, by onnx's own shape inference."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(file), strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {i.name: i.data_type for i in graph.initializer}
    casts = [n for n in graph.node if n.op_type == "Cast"]
    return [n.name for n in casts if {types[n.input[0]], types[n.output[0]]} <= set(FLOATS)], types


@needs("onnx", "onnxscript", "modelopt", "onnx_graphsurgeon", "polygraphy")
def test_modelopt_keeps_the_listed_nodes_in_float32(tmp_path: Path) -> None:
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision

    case = cached("llama")
    plan = case.plan(("fp32", "fp16"))
    export("modelopt", case.source(plan), tmp_path / "modelopt")
    settings = json.loads((tmp_path / "modelopt" / "autocast.json").read_text())
    settings["onnx_path"] = str(tmp_path / "modelopt" / settings["onnx_path"])
    converted = convert_to_mixed_precision(**settings)
    onnx.save(converted, tmp_path / "mixed.onnx")
    _, types = onnx_casts(tmp_path / "mixed.onnx")
    products = {n.name: types[n.output[0]] for n in converted.graph.node if n.op_type in ("MatMul", "Gemm")}
    excluded = {name[1:-1].replace("\\", "") for name in settings["nodes_to_exclude"]}
    assert {name in excluded for name in products} == {True, False}
    assert {name: 1 if name in excluded else 10 for name in products} == products


# --- lists of modules -------------------------------------------------------------------------------------------------


def with_formats(case: Case, choose: Callable[[str], str]) -> Source:
    """The plan that stores every weight in `choose(name)` and all else in fp32."""
    vertices = case.captured.graph.vertices
    formats = tuple("" if v.fixed else choose(v.name) if v.kind == "weight" else "fp32" for v in vertices)
    return case.source(Plan(formats))


def by_kind(name: str) -> str:
    return "int8" if "q_proj" in name else "e4m3" if "up_proj" in name else "bf16"


@needs("torchao")
def test_torchao_quantises_exactly_the_planned_modules(tmp_path: Path) -> None:
    from torchao.core.config import config_from_dict, config_to_dict
    from torchao.quantization import FqnToConfig, quantize_
    from transformers import TorchAoConfig

    model = tinymodels.build("llama")
    model.set_attn_implementation("eager")
    case = Case(model, cached("llama").example, capture(model, cached("llama").example))
    source = with_formats(case, by_kind)
    done = export("torchao", source, tmp_path / "torchao")
    written = json.loads((tmp_path / "torchao" / "torchao_config.json").read_text())
    config = config_from_dict(written)
    assert isinstance(config, FqnToConfig)
    assert config_to_dict(config) == written
    linear = linear_modules(source)
    assert list(config.fqn_to_config) == list(linear)
    quantize_(model, config, filter_fn=None)
    changed = {n: type(m.weight).__name__ for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    plain = {name for name, kind in changed.items() if kind in ("Parameter", "Tensor")}
    assert {n for n, fmt in linear.items() if fmt == "bf16"} == plain
    assert {changed[n] for n, fmt in linear.items() if fmt == "int8"} == {"Int8Tensor"}
    assert {changed[n] for n, fmt in linear.items() if fmt == "e4m3"} == {"Float8Tensor"}
    quantisation = json.loads((tmp_path / "torchao" / "quantization_config.json").read_text())
    assert TorchAoConfig.from_dict(quantisation).quant_type == config
    assert "modules quantised" in done.keeps


def test_bitsandbytes_skips_what_is_wider_than_int8(tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    case = cached("llama")
    source = with_formats(case, by_kind)
    done = export("bitsandbytes", source, tmp_path / "bnb")
    config = BitsAndBytesConfig(**json.loads((tmp_path / "bnb" / "bitsandbytes.json").read_text()))
    linear = linear_modules(source)
    assert config.load_in_8bit
    assert set(config.llm_int8_skip_modules) == {n for n, fmt in linear.items() if fmt != "int8"}
    assert "advisory" in done.omits


@needs("bitsandbytes")
def test_transformers_replaces_the_other_modules_by_bitsandbytes(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear8bitLt
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    case = cached("llama")
    source = with_formats(case, by_kind)
    export("bitsandbytes", source, tmp_path / "bnb")
    config = BitsAndBytesConfig(**json.loads((tmp_path / "bnb" / "bitsandbytes.json").read_text()))
    with torch.device("meta"):
        empty = type(case.model)(case.model.config)
    replaced = replace_with_bnb_linear(empty, config.llm_int8_skip_modules, config)
    found = {n for n, m in replaced.named_modules() if isinstance(m, Linear8bitLt)}
    assert found == {n for n, fmt in linear_modules(source).items() if fmt == "int8"}


def test_the_autocast_shim_keeps_the_islands_in_float32(tmp_path: Path) -> None:
    case = cached("llama")
    vertices = case.captured.graph.vertices
    wide = ("model.layers.0.mlp", "lm_head")
    formats = tuple(
        "" if v.fixed else "fp32" if v.kind == "weight" or v.module.startswith(wide) else "bf16" for v in vertices
    )
    export("autocast", case.source(Plan(formats)), tmp_path / "shim")
    space: dict[str, Any] = {}
    exec(compile((tmp_path / "shim" / "autocast_shim.py").read_text(), "shim", "exec"), space)
    assert space["ISLANDS"] == ["lm_head", "model.layers.0.mlp"]
    assert space["DTYPE"] is torch.bfloat16
    seen: dict[str, torch.dtype] = {}
    watched = ("lm_head", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")
    handles = [
        case.model.get_submodule(n).register_forward_hook(lambda m, i, o, n=n: seen.update({n: o.dtype}))  # type: ignore[misc]
        for n in watched
    ]
    before = {n: m.__dict__.get("forward") for n, m in case.model.named_modules()}
    with torch.no_grad(), space["planned_autocast"](case.model) as model:
        model(**(case.example.kwargs or {}))
    for handle in handles:
        handle.remove()
    assert seen == {watched[0]: torch.float32, watched[1]: torch.float32, watched[2]: torch.bfloat16}
    assert {n: m.__dict__.get("forward") for n, m in case.model.named_modules()} == before
