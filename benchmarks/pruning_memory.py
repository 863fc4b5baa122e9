"""Peak memory of pruning a model of GPT-2-small's size, against the model plus the Grams of two blocks.

    python -m benchmarks.pruning_memory                    # 12 layers of width 768, chain at 0.5
    python -m benchmarks.pruning_memory --method sparsegpt --tokens 8192
    python -m benchmarks.pruning_memory --stream --layers 24 --width 1024 --method wanda --tokens 2048

With `--stream` the model lies in a folder and one block of it is in memory at a time, with held-out text flowing along
and every pruned block written at once: what is compared with the peak is the size of the model.

Weights and texts are random: memory does not depend on them. The peak is that of the resident set (VmHWM, Linux) over
what the process held before the model was made, after a tiny model was pruned so that all code is loaded.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

from cohomcli.models.layout import find_stacks
from cohomcli.models.memory import give_back, map_large_blocks
from cohomcli.models.resolve import resolve
from cohomcli.models.shards import ShardWriter
from cohomcli.models.spec import LoadOptions
from cohomcli.models.streamed import open_streamed
from cohomcli.pruning.forecast import forecast_bytes
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.parts import anatomy_of, at
from cohomcli.pruning.pattern import parse_pattern
from cohomcli.pruning.prune import prune
from cohomcli.pruning.slicing import matrix
from cohomcli.pruning.streamed import prune_streamed

MIB = 2**20
DOUBLE = 8


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def model_of(n_layer: int, width: int) -> nn.Module:
    """A GPT-2 with random weights."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=n_layer, n_embd=width, n_head=max(1, width // 64))
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)


def batches_of(arguments: argparse.Namespace, tokens: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens in sequences of at most 512."""
    length = min(512, tokens // 2)
    ids = torch.randint(0, 50000, (tokens // length, length), generator=torch.Generator().manual_seed(1))
    size = max(1, min(arguments.batch // length, len(ids) // 2))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in torch.split(ids, size)]


def options_of(arguments: argparse.Namespace) -> PruneOptions:
    """What the command line asks for."""
    return PruneOptions(arguments.method, parse_pattern(arguments.pattern))


def run(model: nn.Module, arguments: argparse.Namespace, tokens: int) -> None:
    """Prune `model` on random tokens."""
    prune(model, find_stacks(model).stacks[0], batches_of(arguments, tokens), options_of(arguments))


def run_streamed(folder: Path, arguments: argparse.Namespace, tokens: int) -> None:
    """Prune the model in `folder` into a folder beside it, block by block; half as much text is held out."""
    store = open_streamed(resolve(str(folder)), LoadOptions(tokenizer="tiny-gpt")).store
    assert store is not None
    writer = ShardWriter(folder.with_name("pruned"), len(store.names) + 1)
    batches, held = batches_of(arguments, tokens), batches_of(arguments, tokens // 2)

    def save(index: int) -> None:
        writer.write(store.tensors(index))

    with prune_streamed(store, batches, held, options_of(arguments), save) as (result, _):
        print(f"drift behind the last block {result.drift[-1]:.3g}")
    writer.finish(store.model)


def stream(arguments: argparse.Namespace) -> None:
    """Measure a model that is never whole in memory."""
    with tempfile.TemporaryDirectory() as place:
        for name, n_layer, width in (("small", 2, 64), ("large", arguments.layers, arguments.width)):
            model: Any = model_of(n_layer, width)
            model.save_pretrained(Path(place) / name / "dense")
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            outside = model.get_input_embeddings().weight.nbytes
            del model
            gc.collect()
            if name == "small":
                run_streamed(Path(place) / name / "dense", arguments, 256)
        give_back()
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        begun = time.process_time()
        run_streamed(Path(place) / "large" / "dense", arguments, arguments.tokens)
    peak = status("VmHWM") - before
    print(
        f"model {weights / MIB:.0f} MiB, of it token embeddings {outside / MIB:.0f} MiB, code {before / MIB:.0f} MiB\n"
        f"peak {peak / MIB:.0f} MiB, {peak / weights:.0%} of the model ({time.process_time() - begun:.0f} CPU s)"
    )


def gram_bytes(model: nn.Module) -> int:
    """The Grams of one block in float64, one for each group of maps that read the same inputs."""
    block = find_stacks(model).stacks[0].blocks[0]
    return sum(DOUBLE * matrix(at(block, group.paths[0])).shape[1] ** 2 for group in anatomy_of(block).groups)


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--method", default="chain")
    parser.add_argument("--pattern", default="0.5")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=1024, help="tokens that go through a block together")
    parser.add_argument("--stream", action="store_true", help="one block in memory at a time")
    arguments = parser.parse_args()
    map_large_blocks()  # as the command does
    if arguments.stream:
        stream(arguments)
        return
    run(model_of(1, 64), arguments, 256)
    gc.collect()
    before = status("VmRSS")
    model = model_of(arguments.layers, arguments.width)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    grams = gram_bytes(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    begun = time.process_time()
    run(model, arguments, arguments.tokens)
    peak = status("VmHWM") - before
    allowed = weights + 2 * grams
    print(f"model {weights / MIB:.0f} MiB, Grams of one block {grams / MIB:.0f} MiB, code {before / MIB:.0f} MiB")
    forecast = forecast_bytes(find_stacks(model).stacks[0], arguments.batch, options_of(arguments))
    print(f"forecast beside the model {forecast / MIB:.0f} MiB, measured {(peak - weights) / MIB:.0f} MiB")
    verdict = "below" if peak < allowed else "ABOVE"
    print(
        f"peak {peak / MIB:.0f} MiB, {verdict} the model plus two blocks' Grams, {allowed / MIB:.0f} MiB "
        f"({time.process_time() - begun:.0f} CPU s)"
    )


if __name__ == "__main__":
    main()
