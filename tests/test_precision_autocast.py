"""Autocast by its op lists against the dispatcher's lists and against what PyTorch really does on this CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from graphsketch import Sketch, uniform
from torch import nn

from cohomcli.errors import UsageError
from cohomcli.precision.autocast import OP_LISTS, Device, autocast_plan, widest
from cohomcli.precision.costs import autocast_bytes, bytes_of
from cohomcli.precision.formats import FORMATS
from cohomcli.precision.spec import ComputationGraph


class Pico(nn.Module):
    """A transformer of one block with the ops that autocast treats differently."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(11, 8)
        self.ln_1, self.ln_2, self.ln_f = nn.LayerNorm(8), nn.LayerNorm(8), nn.RMSNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc, self.out = nn.Linear(8, 16), nn.Linear(16, 8)
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.wte.weight
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids)
        q, k, v = self.qkv(self.ln_1(x)).chunk(3, dim=-1)
        scores = (q @ k.transpose(-1, -2)) * self.scale
        scores = torch.cat([scores, scores.exp()], dim=-1)[..., : ids.shape[1]]
        x = x + self.ln_2(self.proj(scores.softmax(dim=-1) @ v))
        x = x + self.out(nn.functional.gelu(self.fc(x)))
        return self.lm_head(self.ln_f(x))


@pytest.fixture(scope="module")
def pico() -> tuple[ComputationGraph, torch.fx.GraphModule, torch.Tensor, list[str]]:
    """Its exported graph as vertices, without capture's help; the node of every vertex."""
    torch.manual_seed(0)
    ids = torch.tensor([[1, 5, 3, 7]])
    exported = torch.export.export(Pico().eval(), (ids,), strict=False)
    module = exported.module()
    assert isinstance(module, torch.fx.GraphModule)
    views = ("chunk", "getitem", "transpose", "slice", "t.default")
    index: dict[Any, int] = {}
    s, nodes = Sketch(), []
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "output" or not (isinstance(value, torch.Tensor) or "chunk" in str(node.target)):
            continue
        if any(view in str(node.target) for view in views):
            index[node] = index[node.all_input_nodes[0]]
            continue
        shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
        operands = dict.fromkeys(index[argument] for argument in node.all_input_nodes)
        if node.op == "placeholder":
            index[node] = s.input(value.numel(), dtype)
        elif node.op == "get_attr":
            tensor = module.get_parameter(node.target)
            index[node] = s.weight(shape, name=node.target, storage=str(tensor.data_ptr()))
        else:
            index[node] = s.op(shape, *operands, target=str(node.target), dtype=dtype, module=node.name)
        nodes.append(node.name)
    return s.graph(), module, ids, nodes


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_plan_is_what_torch_does_on_this_cpu(pico: Any, name: str, dtype: torch.dtype) -> None:
    graph, module, ids, nodes = pico
    seen: dict[str, str] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                seen[n.name] = str(value.dtype).removeprefix("torch.")
            return value

    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        Watch(module).run(ids)
    formats = autocast_plan(graph, name, "cpu").formats
    predicted = {n: FORMATS[f].dtype for n, f in zip(nodes, formats, strict=True) if f}
    assert predicted == {n: seen[n] for n in predicted}
    assert Counter(predicted.values())[FORMATS[name].dtype] >= 9
    assert Counter(predicted.values())["float32"] > 10


def test_autocast_bytes_of_the_real_model(pico: Any) -> None:
    graph, _, _, _ = pico
    bytes32 = bytes_of(graph, uniform(graph, "fp32"))
    parameters = 88 + 16 + 16 + 8 + 1 + 8 * 24 + 24 + 8 * 8 + 8 + 8 * 16 + 16 + 16 * 8 + 8
    assert bytes32.weights == parameters * 4  # the head is the embedding: counted once
    found = autocast_bytes(graph, "bf16", "cpu")
    assert found.weights == parameters * 4  # the float32 masters stay
    linear = 8 * 24 + 24 + 8 * 8 + 8 + 8 * 16 + 16 + 16 * 8 + 8 + 88  # every Linear is copied once, the tied head too
    activations = 3 * 32  # the float32 inputs of qkv, fc and the head
    assert found.casts == 6 * (linear + activations)
    assert found.n_casts == 4 * 2 + 1 + 3
    assert found.activations_peak > linear * 2  # cached copies stay until the context ends
    # on CUDA, exp and ln_2 take float32 copies of 16 and 32 elements, and the float32 result of softmax is converted
    cuda = autocast_bytes(graph, "bf16", "cuda")
    assert cuda.casts == found.casts + 6 * (16 + 32 + 16)
    assert cuda.n_casts == found.n_casts + 3
    with pytest.raises(UsageError, match="no autocast to e4m3"):
        autocast_bytes(graph, "e4m3")


def test_autocast_leaves_float64_alone() -> None:
    s = Sketch()
    graph = s.graph(s.op(4, s.input(4, "float64"), s.weight(16, dtype="float64"), target="aten.linear.default"))
    assert autocast_plan(graph, "bf16", "cpu").formats[2] == "fp64"
    assert autocast_bytes(graph, "bf16", "cpu").n_casts == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.Linear(4, 4).double()(torch.ones(1, 4).double()).dtype == torch.float64


@pytest.mark.parametrize(("device", "key"), [("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")])
def test_op_lists_are_those_of_the_dispatcher(device: Device, key: str) -> None:
    registered = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    names = {name.removeprefix("aten::").split(".")[0] for name in registered if name.startswith("aten::")}
    lists = OP_LISTS[device]
    parts = [lists.lower, lists.fp32, lists.fp32_result, lists.promote]
    ours = frozenset().union(*parts)
    assert sum(map(len, parts)) == len(ours)
    # CUDA registers binary_cross_entropy in order to refuse it
    assert ours == names - ({"binary_cross_entropy"} if device == "cuda" else set())


def test_promotion_is_that_of_torch() -> None:
    reals = ("bf16", "fp16", "fp32", "fp64")
    for a in reals:
        for b in reals:
            expected = torch.promote_types(FORMATS[a].torch_dtype, FORMATS[b].torch_dtype)
            assert FORMATS[widest([a, b])].torch_dtype == expected
    assert widest([]) == ""
