"""How large drift is for changes of known size: `python -m benchmarks.drift` prints the table of docs/topology.md.

The built-in tiny-gpt is changed by noise, by training and by drawing its matrices anew; every layer is compared with
the same layer before, on the same texts. About 25 CPU-seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from cohomcli.data.sample import load_texts
from cohomcli.data.spec import DatasetSpec
from cohomcli.models.activations import collect
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import ActivationOptions, LoadOptions
from cohomcli.topology.drift import representation_drift
from cohomcli.topology.measures import MEASURES

SEED = 1


def main() -> None:
    """Print one row per change and one column per measure: the largest drift of any layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="built-in texts")
    parser.add_argument("--measures", nargs="+", default=["cka-debiased", "nts-e", "nts-m"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts = load_texts(DatasetSpec("builtin"), arguments.samples, 0).texts
    print(f"{'change':32}" + "".join(f"{name:>14}" for name in arguments.measures))
    for change, pairs in changes(texts):
        worst = [max(representation_drift(x, y, MEASURES.get(name)) for x, y in pairs) for name in arguments.measures]
        print(f"{change:32}" + "".join(f"{value:14.4f}" for value in worst))


def changes(texts: tuple[str, ...]) -> Iterator[tuple[str, list[tuple[Any, Any]]]]:
    """Each change with its pairs of activations, (n_texts, width) after and before, over the layers."""
    loaded = load(resolve("tiny-gpt"), LoadOptions())
    model, options = loaded.model, ActivationOptions(perplexity=False)
    before = collect(loaded, texts, options).layers
    kept = {name: value.clone() for name, value in model.state_dict().items()}

    def after(change: Callable[[], None]) -> list[tuple[Any, Any]]:
        model.load_state_dict(kept)
        torch.manual_seed(SEED)
        change()
        layers = collect(loaded, texts, options).layers
        return [(layers[name], before[name]) for name in before]

    yield "none", after(lambda: None)
    yield "3 steps of AdamW at 1e-4", after(lambda: train(loaded, texts, 3, 1e-4))
    yield "noise of 5 %", after(lambda: add_noise(model, 0.05))
    yield "60 steps of AdamW at 1e-3", after(lambda: train(loaded, texts, 60, 1e-3))
    yield "noise of 100 %", after(lambda: add_noise(model, 1.0))
    yield "every matrix drawn anew", after(lambda: draw_anew(model))
    order = np.random.default_rng(0).permutation(len(texts))
    yield "the texts in another order", [(before["layer_3"][order], before["layer_3"])]


@torch.no_grad()
def add_noise(model: Any, share: float) -> None:
    """Gaussian noise of `share` times each parameter's standard deviation."""
    for parameter in model.parameters():
        parameter.add_(share * parameter.std() * torch.randn_like(parameter))


@torch.no_grad()
def draw_anew(model: Any) -> None:
    """Every matrix replaced by a Gaussian one of its standard deviation."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(parameter.std() * torch.randn_like(parameter))


def train(loaded: Any, texts: tuple[str, ...], steps: int, rate: float) -> None:
    """`steps` updates on batches of 8 texts of at most 64 tokens."""
    model = loaded.model.train().requires_grad_(True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        at = (8 * step) % max(len(texts) - 8, 1)
        batch = loaded.tokenizer(
            list(texts[at : at + 8]), return_tensors="pt", padding=True, truncation=True, max_length=64
        )
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
