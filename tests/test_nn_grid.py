"""Layers of grids: windows by gradient, exact back-ends, rotary geometry, chunks, padding, and non-square shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cohomcli.errors import UsageError
from cohomcli.nn import ChunkAttention, Global2DAttention, Grid, Local2DAttention, NonLinearTransformerBlock
from cohomcli.nn.local2d import Backend, band_2d, choose_backend, local2d_attention
from cohomcli.nn.rotary import Rotary2DEmbedding, angles_1d, rotate

SIZE = (4, 6)


def reach(layer: nn.Module, size: tuple[int, int] = SIZE, mask: Tensor | None = None) -> Tensor:
    """(N, N) boolean: whether output cell i depends on input cell j."""
    torch.manual_seed(0)
    x = torch.randn(1, *size, 8, requires_grad=True)
    out = layer(x, mask).flatten(1, 2)
    n = size[0] * size[1]
    rows = [torch.autograd.grad(out[0, i].sum(), x, retain_graph=True)[0].abs().sum(-1).view(n) for i in range(n)]
    return torch.stack(rows) > 0


def naive(q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """Cell by cell, as a definition."""
    out = torch.zeros_like(q)
    for i in range(grid.height):
        for j in range(grid.width):
            cells = [
                a * grid.width + b
                for a in range(max(0, i - grid.r), min(grid.height, i + grid.r + 1))
                for b in range(max(0, j - grid.r), min(grid.width, j + grid.r + 1))
            ]
            at = i * grid.width + j
            scores = (q[:, :, at : at + 1] @ k[:, :, cells].transpose(-2, -1)) / q.shape[-1] ** 0.5
            out[:, :, at : at + 1] = scores.softmax(-1) @ v[:, :, cells]
    return out


@given(st.integers(1, 11), st.integers(1, 11), st.integers(0, 6), st.booleans())
@settings(max_examples=25)
def test_every_back_end_is_the_definition(height: int, width: int, r: int, eager: bool) -> None:
    torch.manual_seed(height * 100 + width * 10 + r)
    grid = Grid(height, width, r)
    q, k, v = (torch.randn(2, 2, grid.n_cells, 4) for _ in range(3))
    wanted = naive(q, k, v, grid)
    backends: tuple[Backend, ...] = ("auto", "mask", "stripes", "tiles")
    for backend in backends:
        found = local2d_attention(q, k, v, grid, backend=backend, eager=eager)
        assert torch.allclose(found, wanted, atol=1e-5), backend


@pytest.mark.parametrize("size", [(10, 10), (9, 33), (40, 34)])
def test_back_ends_agree_with_absent_cells_and_in_their_gradients(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    grid = Grid(*size, 2)
    present = torch.rand(2, grid.n_cells) > 0.4
    found = {}
    for backend in ("mask", "stripes", "tiles"):
        torch.manual_seed(2)
        q, k, v = (torch.randn(2, 2, grid.n_cells, 4, requires_grad=True) for _ in range(3))
        out = local2d_attention(q, k, v, grid, present, backend=backend)  # type: ignore[arg-type]
        (out * torch.linspace(-1, 2, 4)).sum().backward()
        found[backend] = [out, q.grad, k.grad, v.grad]
    for backend in ("stripes", "tiles"):
        for a, b in zip(found["mask"], found[backend], strict=True):
            assert torch.allclose(a, b, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("hide", [False, True])
def test_the_written_gradient_of_stripes_is_that_of_finite_differences(hide: bool) -> None:
    torch.manual_seed(6)
    grid = Grid(3, 4, 1)
    qkv = [torch.randn(1, 2, 12, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    present = torch.rand(1, 12) > 0.4 if hide else None
    assert torch.autograd.gradcheck(lambda q, k, v: local2d_attention(q, k, v, grid, present, backend="stripes"), qkv)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["mask", "stripes", "tiles"])
def test_half_precision_stays_finite_where_a_cell_sees_nothing(dtype: torch.dtype, backend: Backend) -> None:
    torch.manual_seed(7)
    q, k, v = (torch.randn(1, 1, 30, 4).to(dtype).requires_grad_() for _ in range(3))
    present = torch.zeros(1, 30, dtype=torch.bool)
    present[0, :3] = True
    out = local2d_attention(q, k, v, Grid(6, 5, 1), present, backend=backend)
    out.sum().backward()
    assert (out[0, 0, 15:] == 0).all()
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v))  # type: ignore[union-attr]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex_attention has no backward pass on CPUs")
def test_flex_agrees_on_cuda() -> None:
    grid = Grid(40, 24, 3)
    q, k, v = (torch.randn(2, 2, grid.n_cells, 16, device="cuda") for _ in range(3))
    present = torch.rand(2, grid.n_cells, device="cuda") > 0.4
    found = local2d_attention(q, k, v, grid, present, backend="flex")
    assert torch.allclose(found, local2d_attention(q, k, v, grid, present, backend="mask"), atol=1e-5)


def test_flex_is_refused_on_a_cpu_and_wrong_shapes_are_named() -> None:
    q = torch.randn(1, 1, 6, 4)
    with pytest.raises(UsageError, match="CUDA"):
        local2d_attention(q, q, q, Grid(2, 3, 1), backend="flex")
    with pytest.raises(UsageError, match="does not fit"):
        local2d_attention(q, q, q, Grid(2, 2, 1))
    with pytest.raises(UsageError, match="unknown back-end"):
        local2d_attention(q, q, q, Grid(2, 3, 1), backend="natten")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no grid"):
        Local2DAttention(8)(torch.randn(1, 6, 8))


def test_large_grids_avoid_the_full_mask() -> None:
    cpu = torch.device("cpu")
    assert choose_backend(Grid(10, 10, 1), cpu) == "mask"
    assert choose_backend(Grid(12, 12, 9), cpu) == "mask"
    assert choose_backend(Grid(64, 64, 3), cpu) == "stripes"
    assert choose_backend(Grid(2000, 5, 4), cpu) == "stripes"
    assert choose_backend(Grid(300, 300, 1), cpu) == "tiles"
    assert choose_backend(Grid(64, 64, 3), torch.device("cuda")) == "flex"


@pytest.mark.parametrize("backend", ["stripes", "tiles"])
def test_memory_per_cell_does_not_grow_with_the_number_of_rows(backend: Backend) -> None:
    kept: list[float] = []
    for height in (32, 128):
        storages: dict[int, int] = {}

        def keep(x: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        q = torch.randn(1, 2, height * 32, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = local2d_attention(q, q, q, Grid(height, 32, 3), backend=backend)
        kept.append(sum(storages.values()) / (height * 32))
        del out
    assert 0.8 * kept[0] < kept[1] <= 1.05 * kept[0]


@pytest.mark.parametrize("window_size", [0, 1, 2])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_window_and_heads_mean_what_they_say(window_size: int, heads: int) -> None:
    layer = Local2DAttention(8, window_size, heads)
    assert torch.equal(reach(layer), band_2d(Grid(*SIZE, window_size)))
    torch.manual_seed(3)
    q, k, v = layer.heads_of(torch.randn(1, 24, 8), SIZE)
    assert q.shape == k.shape == v.shape == (1, heads, 24, 8 // heads)


def test_heads_are_independent_attentions() -> None:
    torch.manual_seed(4)
    layer = Local2DAttention(8, 1, 2)
    x = torch.randn(1, *SIZE, 8)
    with torch.no_grad():
        layer.proj.weight.copy_(torch.eye(8)), layer.proj.bias.zero_()
        before = layer(x)
        layer.qkv.weight[:4] += 1.0  # the first head's queries
        after = layer(x)
    assert not torch.allclose(before[..., :4], after[..., :4])
    assert torch.equal(before[..., 4:], after[..., 4:])


def test_attention_has_parameters_and_learns() -> None:
    layer = NonLinearTransformerBlock(8, 1, 2)
    layer(torch.randn(1, *SIZE, 8)).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters() if p.dim() > 1)


def test_rows_and_columns_turn_different_pairs() -> None:
    rotary = Rotary2DEmbedding(8)
    theta = rotary(3, 5).view(3, 5, 4)
    assert torch.equal(theta[1, :, :2], theta[1, :1, :2].expand(5, 2))
    assert torch.equal(theta[:, 2, 2:], theta[:1, 2, 2:].expand(3, 2))
    assert len({tuple(row.tolist()) for row in theta.view(15, 4)}) == 15


@given(st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=10)
def test_turned_products_depend_on_differences_alone(down: int, right: int) -> None:
    torch.manual_seed(5)
    rotary = Rotary2DEmbedding(16)
    q, k = torch.randn(16), torch.randn(16)
    turned_q = rotary.turn(q.expand(1, 1, 64, 16), 8, 8).view(8, 8, 16)
    turned_k = rotary.turn(k.expand(1, 1, 64, 16), 8, 8).view(8, 8, 16)
    scores = torch.stack([turned_q[i, j] @ turned_k[i + down, j + right] for i in range(5) for j in range(5)])
    assert torch.allclose(scores, scores[:1].expand(25), atol=1e-4)
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(8, 8), atol=1e-4)


def test_one_dimensional_rotation_is_that_of_complex_numbers() -> None:
    torch.manual_seed(6)
    x, theta = torch.randn(5, 6), angles_1d(5, 6)
    numbers = torch.complex(x[:, :3], x[:, 3:]) * torch.polar(torch.ones(5, 3), theta)
    assert torch.allclose(rotate(x, theta), torch.cat([numbers.real, numbers.imag], -1), atol=1e-5)


LAYERS = [Local2DAttention(8, 1, 2), Global2DAttention(8, 2), ChunkAttention(8, 2, 2)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_absent_cells_change_nothing(layer: nn.Module) -> None:
    torch.manual_seed(7)
    x = torch.randn(2, 3, 5, 8)
    wide = 50 * torch.randn(2, 6, 8, 8)
    wide[:, :3, :5] = x
    mask = torch.zeros(2, 6, 8, dtype=torch.long)
    mask[:, :3, :5] = 1
    assert torch.allclose(layer(wide, mask)[:, :3, :5], layer(x), atol=1e-4)
    assert torch.allclose(layer(x, eager=True), layer(x), atol=1e-5)


@pytest.mark.parametrize("layer", [*LAYERS, NonLinearTransformerBlock(8, 1)], ids=lambda layer: type(layer).__name__)
def test_flat_and_square_cells_are_the_same(layer: nn.Module) -> None:
    x = torch.randn(2, *SIZE, 8)
    flat = layer(x.flatten(1, 2), size=SIZE)
    assert torch.equal(flat.view(x.shape), layer(x))


def test_chunks_reach_everything_and_hold_the_means_of_present_cells() -> None:
    layer = ChunkAttention(8, 2, 2)
    assert reach(layer).all()
    x = torch.arange(6.0).view(1, 6, 1).expand(1, 6, 8)
    present = torch.tensor([[True, True, False, True, False, False]])
    means, exists = layer.pooled(x, present, (2, 3))  # cells 0 1 2 / 3 4 5, chunks of columns 0-1 and 2
    assert means[0, :, 0].tolist() == pytest.approx([(0 + 1 + 3) / 3, 0.0])
    assert exists.tolist() == [[True, False]]
    assert torch.isfinite(layer(torch.randn(1, 2, 3, 8), present.view(1, 2, 3))).all()
