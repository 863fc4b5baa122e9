"""Where heads and neurons are: judged by what changes when their weights change, family by family."""

from __future__ import annotations

import pytest
import tinymodels
import torch

from cohomcli.errors import InputRefused
from cohomcli.models.layout import find_stacks
from cohomcli.models.maps import weight_matrix
from cohomcli.models.units import Unit, parse_unit, units_of_components
from cohomcli.models.wiring import WiredBlock, weights_of, wire

FAMILIES = ("gpt2", "gpt_neo", "gpt_neox", "opt", "llama", "mistral", "qwen2", "gemma2", "phi")


def _block(family: str) -> tuple[torch.nn.Module, WiredBlock]:
    model = tinymodels.build(family)
    return model, wire(model, find_stacks(model).stacks[0])[1]


def _inputs(model: torch.nn.Module, module: torch.nn.Module) -> torch.Tensor:
    seen = []
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().clone()))
    with torch.no_grad():
        model(torch.arange(20, 28)[None])
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


@torch.no_grad()
def _disturb(block: WiredBlock, path: str, rows: torch.Tensor) -> None:
    weight = weight_matrix(block.module(path))  # a view of what is stored
    weight[rows] += torch.randn(len(rows), weight.shape[1], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["q", "k", "v"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_rows_of_a_head_move_its_output_alone(family: str, kind: str) -> None:
    model, block = _block(family)
    index = (block.n_heads if kind == "q" else block.n_groups) - 1
    before = _inputs(model, block.attn_out)
    _disturb(block, *block.read_rows(kind, index))
    moved = (_inputs(model, block.attn_out) - before).abs().amax(0).reshape(block.n_heads, block.head_dim).amax(
        1
    ) > 1e-7
    heads = [
        at for at in range(block.n_heads) if (at if kind == "q" else at * block.n_groups // block.n_heads) == index
    ]
    assert moved.nonzero().flatten().tolist() == heads


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rows_of_a_neuron_move_it_alone(family: str) -> None:
    model, block = _block(family)
    before = _inputs(model, block.mlp_out)
    slices = {one.name: one for one in weights_of([block], [Unit(1, "neuron", 5)])}
    for path in block.wiring.neurons:
        _disturb(block, path, slices[f"layer_1.{path}"].rows)
    moved = (_inputs(model, block.mlp_out) - before).abs().amax(0) > 1e-7
    assert moved.nonzero().flatten().tolist() == [5]
    assert slices[f"layer_1.{block.wiring.mlp_out}"].columns.tolist() == [5]


def test_grouped_keys_belong_to_every_head_that_reads_them() -> None:
    _, block = _block("llama")
    slices = {one.name: one for one in weights_of([block], [Unit(1, "head", 1)])}
    assert slices["layer_1.self_attn.q_proj"].rows.tolist() == list(range(8, 16))
    assert slices["layer_1.self_attn.k_proj"].rows.tolist() == list(range(8))
    assert slices["layer_1.self_attn.o_proj"].columns.tolist() == list(range(8, 16))
    assert len(slices["layer_1.self_attn.o_proj"].rows) == 0


def test_a_whole_mlp_is_all_its_neurons() -> None:
    _, block = _block("gpt2")
    slices = {one.name: one for one in weights_of([block], [Unit(1, "mlp"), Unit(1, "neuron", 3)])}
    assert slices["layer_1.mlp.c_fc"].rows.tolist() == list(range(64))
    assert slices["layer_1.mlp.c_proj"].columns.tolist() == list(range(64))


def test_unknown_units_and_families_are_refused() -> None:
    _, block = _block("gpt2")
    with pytest.raises(InputRefused, match=r"no unit layer_1\.head_2"):
        weights_of([block], [Unit(1, "head", 2)])
    with pytest.raises(InputRefused, match="another model"):
        weights_of([block], [Unit(7, "mlp")])
    bert = tinymodels.build("bert")
    with pytest.raises(InputRefused, match="not known here"):
        wire(bert, find_stacks(bert).stacks[0])


@pytest.mark.parametrize("unit", [Unit(0, "head", 3), Unit(12, "mlp"), Unit(1, "neuron", 1535)])
def test_names_of_units_are_read_back(unit: Unit) -> None:
    assert parse_unit(unit.name) == unit


def test_an_edge_touches_both_its_ends() -> None:
    edges = ["input -> layer_0.head_1.q", "layer_0.mlp -> layer_1.group_1.k", "layer_1.head_0 -> logits"]
    assert units_of_components(edges, 3) == [
        Unit(0, "head", 1),
        Unit(0, "mlp"),
        *(Unit(1, "head", at) for at in (0, 3, 4, 5)),
    ]
    for wrong in ("head_1", "layer_0.head_1.q", "input -> layer_0.head_1", "layer_0.mlp -> end"):
        with pytest.raises(InputRefused, match=r"names no|no end"):
            units_of_components([wrong], 1)
