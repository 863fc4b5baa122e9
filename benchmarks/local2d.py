"""Local two-dimensional attention and the whole grid model against the package `nonlinear-transformer==0.0.3`.

    pip install --no-deps --target oracle nonlinear-transformer==0.0.3 einops
    PYTHONPATH=oracle python -m benchmarks.local2d

That package loops over cells in Python. CPU seconds on one thread, forward and backward, minima over the repeats, sides
alternating. Local attention on 8 x 10 x 10 cells (radius 1) and 8 x 28 x 28 (radius 3), width 128, ours once as the
bare function in 4 heads and once as the layer with its projections (theirs has neither heads nor parameters); `floor`
adds the three tensors instead of attending, which is the least that any torch function of them takes; the whole
model on 4 x 31 x 31 tokens, width 512, depth 6, radius 3, vocabulary 10,000. `--backends` compares our own back-ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cohomcli.nn import Grid, Local2DAttention, NonLinearTransformer
from cohomcli.nn.local2d import BACKENDS, Backend, local2d_attention

BATCH, WIDTH, HEADS = 8, 128, 4
GRIDS = ((10, 1), (28, 3))
Run = Callable[[], Any]


def seconds(run: Run) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def fastest(sides: dict[str, Run], repeats: dict[str, int]) -> dict[str, float]:
    """Minimum CPU seconds per side; ours runs once more first, to warm up."""
    best = dict.fromkeys(sides, float("inf"))
    for turn in range(max(repeats.values())):
        for name, run in sides.items():
            if turn < repeats[name]:
                best[name] = min(best[name], seconds(run))
    return best


def backward(out: Tensor) -> None:
    """Gradients of a sum of squares."""
    torch.autograd.backward(out.pow(2).sum())


def attention_sides(side: int, r: int, theirs: Any) -> dict[str, Run]:
    """Forward and backward of local attention on BATCH grids of side x side."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, side, side, WIDTH, requires_grad=True)
    q, k, v = (torch.randn(BATCH, HEADS, side * side, WIDTH // HEADS, requires_grad=True) for _ in range(3))
    layer = Local2DAttention(WIDTH, r, HEADS)
    loop = theirs.Local2DAttention(WIDTH, r)
    return {
        "function": lambda: backward(local2d_attention(q, k, v, Grid(side, side, r))),
        "layer": lambda: backward(layer(x)),
        "floor": lambda: backward(q + k + v),
        "package": lambda: backward(loop(x)),
    }


def model_sides(theirs: Any) -> dict[str, Run]:
    """Forward and backward of both whole models."""
    torch.manual_seed(0)
    ids = torch.randint(0, 10_000, (4, 31, 31))
    ours = NonLinearTransformer(vocab_size=10_000, dim=512, depth=6, matrix_dim=31, window_size=3, heads=8)
    loop = theirs.NonLinearTransformer(vocab_size=10_000, dim=512, depth=6, matrix_dim=31, window_size=3)

    def forward(model: Any) -> None:
        with torch.no_grad():
            model(ids)

    return {
        "forward": lambda: forward(ours),
        "package forward": lambda: forward(loop),
        "both": lambda: backward(ours(ids).logits),
        "package both": lambda: backward(loop(ids)),
    }


def windowed(qkv: tuple[Tensor, Tensor, Tensor], grid: Grid, backend: Backend) -> None:
    """Forward and backward of local attention by one back-end."""
    backward(local2d_attention(*qkv, grid, backend=backend))


def unwindowed(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    """Forward and backward of full attention."""
    backward(torch.nn.functional.scaled_dot_product_attention(*qkv))


def compare_backends() -> list[dict[str, Any]]:
    """Our exact back-ends on growing grids, forward and backward; `none` is full attention without windows."""
    rows = []
    for side, r in ((10, 1), (28, 3), (32, 2), (48, 3), (64, 3), (96, 3)):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, HEADS, side * side, 32, requires_grad=True) for _ in range(3))
        sides: dict[str, Run] = {}
        for name in BACKENDS[1:4]:
            sides[name] = partial(windowed, (q, k, v), Grid(side, side, r), name)
        sides["none"] = partial(unwindowed, (q, k, v))
        rows.append({"side": side, "radius": r, **fastest(sides, dict.fromkeys(sides, 5))})
    return rows


def compare_attention(side: int, r: int, theirs: Any, repeats: int) -> dict[str, Any]:
    """Seconds of all three sides and how many times faster ours are."""
    found = fastest(
        attention_sides(side, r, theirs), {"function": repeats, "layer": repeats, "floor": repeats, "package": 2}
    )
    ratios = {f"ratio_{name}": found["package"] / found[name] for name in ("function", "layer", "floor")}
    return {"grid": f"{side}x{side}", "radius": r, **found, **ratios}


def compare_models(theirs: Any) -> dict[str, Any]:
    """Seconds of both whole models and how many times faster ours is."""
    found = fastest(model_sides(theirs), {"forward": 2, "package forward": 1, "both": 2, "package both": 1})
    found["ratio_forward"] = found["package forward"] / found["forward"]
    found["ratio_both"] = found["package both"] / found["both"]
    return found


def main() -> int:
    """Print one JSON object; exit code 2 when the package is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="repeats of our side; the package's loops run twice")
    parser.add_argument("--only", choices=("attention", "model"), help="one of the two comparisons")
    parser.add_argument("--backends", action="store_true", help="compare our back-ends instead")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    if wanted.backends:
        print(json.dumps({"unit": "CPU seconds", "backends": compare_backends()}, indent=2))
        return 0
    try:
        from heptapod import model as theirs  # type: ignore[import-not-found]
    except ImportError as error:
        print(f"the package is missing ({error}): see the head of this file", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"unit": "CPU seconds"}
    if wanted.only != "model":
        result["attention"] = [compare_attention(side, r, theirs, wanted.repeats) for side, r in GRIDS]
    if wanted.only != "attention":
        result["model"] = compare_models(theirs)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
