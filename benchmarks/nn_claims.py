"""The figures of docs/nn.md: what the published layers and losses do, and what ours do on the same inputs.

    python -m benchmarks.nn_claims

Prints one JSON object; about 40 CPU-seconds on one thread. Seeds are fixed; times are CPU seconds, minima of six.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from torch import Tensor

from cohomcli.nn import (
    CohomologicalConfig,
    CohomologicalTransformer,
    MapPair,
    NonLinearTransformer,
    compat,
    compat_grid,
    measure_pair,
)
from cohomcli.nn.local2d import Grid, local2d_attention
from cohomcli.training import CohomologicalTrainingObjective, ExactSequenceLoss, SpectralSequenceLoss
from cohomcli.training import compat as literal

ZERO = torch.zeros(())


@torch.no_grad()
def positions_told_apart() -> dict[str, float]:
    """Spread of the logits over positions divided by their spread over the vocabulary, both models of width 512."""
    torch.manual_seed(0)
    ids = torch.randint(0, 30_000, (1, 32))
    ours = CohomologicalTransformer()(ids).logits[0]
    theirs = compat.LiteralCohomologicalTransformer()(ids)[0][0]
    return {name: float(z.std(0).mean() / z.std(1).mean()) for name, z in (("ours", ours), ("published", theirs))}


@torch.no_grad()
def norms_by_depth() -> dict[str, dict[int, float]]:
    """Mean norm of a cell's last hidden state relative to that at depth 1; width 64, 8 x 8 cells, vocabulary 100."""
    ids = torch.randint(0, 100, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    found: dict[str, dict[int, float]] = {"ours": {}, "published": {}}
    for depth in (1, 2, 4, 8, 16, 24):
        torch.manual_seed(0)
        model = NonLinearTransformer(vocab_size=100, dim=64, depth=depth, heads=4, matrix_dim=8, window_size=1).eval()
        hidden = model(ids, output_hidden_states=True).hidden_states[-1]
        found["ours"][depth] = float(hidden.norm(dim=-1).mean())
        loop = compat_grid.LiteralNonLinearTransformer(100, 64, depth, 8)
        h = loop.embedding(ids)
        for block in loop.blocks:
            h = h + block(h)
            h = h + compat_grid.literal_local_2d_attention(h, loop.window_size)
        found["published"][depth] = float(h.norm(dim=-1).mean())
    return {name: {depth: value / row[1] for depth, value in row.items()} for name, row in found.items()}


@torch.no_grad()
def rows_told_apart() -> dict[str, float]:
    """Largest difference between the logits of two rows of an empty canvas, depth 1."""
    canvas = torch.zeros(1, 8, 8, dtype=torch.long)
    torch.manual_seed(0)
    ours = NonLinearTransformer(vocab_size=100, dim=64, depth=1, heads=4, matrix_dim=8).eval()(canvas).logits[0]
    theirs = compat_grid.LiteralNonLinearTransformer(100, 64, 1, 8)(canvas)[0]
    return {name: float((z - z[:1]).abs().max()) for name, z in (("ours", ours), ("published", theirs))}


def exact_losses() -> dict[str, dict[str, float]]:
    """Both exactness losses on telling cases: m = 8, and for the published one the activations of the same maps."""
    eye = torch.eye(8)
    torch.manual_seed(0)
    random = torch.randn(8, 8), torch.randn(8, 8)
    cases = {
        "exact": (eye[:, :4] @ eye[:4], eye[4:].T @ eye[4:]),
        "identity": (eye, eye),
        "zero": (0 * eye, 0 * eye),
        "random": random,
        "random x 10": (10 * random[0], 10 * random[1]),
    }
    found = {}
    for name, (A, B) in cases.items():
        states = [eye[None], A[None], (B @ A)[None]]
        ours = float(ExactSequenceLoss(1.0)([MapPair(A, B)], ZERO)[0])
        found[name] = {"ours": ours, "published": float(literal.literal_exact_loss(states, ZERO, 1.0))}
    return found


def spectral_losses() -> dict[str, dict[str, float]]:
    """Both spectral losses on pairs (local, global) of shape (4, 32, 8)."""
    torch.manual_seed(0)
    h, noise = torch.randn(2, 4, 32, 8)
    cases: dict[str, tuple[Tensor, Tensor]] = {
        "agree": (h, h),
        "half apart": (h + 0.5 * noise, h),
        "half apart x 10": (10 * (h + 0.5 * noise), 10 * h),
        "half apart, batch twice": (torch.cat([h + 0.5 * noise] * 2), torch.cat([h, h])),
        "constant": (torch.ones_like(h), torch.ones_like(h)),
        "zero": (0 * h, 0 * h),
    }
    return {
        name: {
            "ours": float(SpectralSequenceLoss(1.0)(a, b, ZERO)[0]),
            "published": float(literal.literal_spectral_loss(a, b, ZERO, 1.0)),
        }
        for name, (a, b) in cases.items()
    }


def descent() -> dict[str, Any]:
    """Adam on a random pair of 32 x 32 maps with our loss alone: the measures before and after 600 steps."""
    torch.manual_seed(0)
    A, B = (torch.nn.Parameter(torch.randn(32, 32)) for _ in range(2))
    optimiser, before = torch.optim.Adam([A, B], lr=0.05), measure_pair(MapPair(A, B))
    for _ in range(600):
        optimiser.zero_grad()
        torch.autograd.backward(ExactSequenceLoss(1.0)([MapPair(A, B)], ZERO)[0])
        optimiser.step()
    after = measure_pair(MapPair(A, B))
    return {
        name: {"kappa": m.complex_defect, "eta": m.homology_defect, "rank": m.rank_image, "dim_kernel": m.dim_kernel}
        for name, m in (("before", before), ("after", after))
    }


def step_cost() -> dict[str, float]:
    """One training step at the size of tiny-gpt, 16 x 128 tokens, without and with both structural losses."""
    torch.manual_seed(0)
    heads = {f"h{level}_heads": 6 for level in range(3)}
    config = CohomologicalConfig(2048, 96, 32, 3, 2, 1, **heads, exact="soft")  # type: ignore[arg-type]
    model = CohomologicalTransformer(config)
    ids = torch.randint(0, 2048, (16, 128))
    best = {0.0: float("inf"), 0.1: float("inf")}
    for _ in range(6):
        for weight in best:
            start, objective = time.process_time(), CohomologicalTrainingObjective(weight, weight)
            output = model(ids, labels=ids, return_structure=objective.needs_structure)
            torch.autograd.backward(objective(output, output.loss)[0])
            best[weight] = min(best[weight], time.process_time() - start)
    return {"plain": best[0.0], "both": best[0.1], "ratio": best[0.1] / best[0.0]}


def memory() -> dict[str, dict[int, float]]:
    """KiB per cell that autograd keeps for one local attention, 4 heads of 32, radius 3, on square grids."""
    found: dict[str, dict[int, float]] = {"mask": {}, "stripes": {}, "tiles": {}}
    for name, row in found.items():
        for side in (32, 64, 128):
            if name == "mask" and side > 64:
                continue
            kept: dict[int, int] = {}

            def keep(x: Tensor, kept: dict[int, int] = kept) -> Tensor:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            q = torch.randn(1, 4, side * side, 32, requires_grad=True)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                out = local2d_attention(q, q, q, Grid(side, side, 3), backend=name)  # type: ignore[arg-type]
            row[side] = sum(kept.values()) / 1024 / side**2
            del out
    return found


def main() -> None:
    """Print everything."""
    torch.set_num_threads(1)
    jobs = (
        positions_told_apart,
        norms_by_depth,
        rows_told_apart,
        exact_losses,
        spectral_losses,
        descent,
        step_cost,
        memory,
    )
    print(json.dumps({job.__name__: job() for job in jobs}, indent=2))


if __name__ == "__main__":
    main()
