"""Perplexity, drift and CPU seconds of every pruning method on one model, same calibration and evaluation texts.

    python -m benchmarks.pruning                                       # tiny-gpt: 0.5, 2:4, mlp:0.25
    python -m benchmarks.pruning --model tiny-bert --seeds 3
    python -m benchmarks.pruning --model FOLDER --tokens 8192 --length 512 --out-of-domain notes.txt

Calibration is on the `calibration` split of the data set, evaluation on its `heldout` split and on the texts of
--out-of-domain. A seed draws other calibration texts; the table shows the mean over seeds and the range.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cohomcli.data.sample import load_all_texts
from cohomcli.data.spec import DatasetSpec
from cohomcli.models.load import load
from cohomcli.models.probe import find_layout
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadedModel, LoadOptions
from cohomcli.pruning.pattern import Pattern, parse_pattern
from cohomcli.pruning.prune import PruneOptions, prune
from cohomcli.training.data import TextBlocks, text_blocks
from cohomcli.training.loop import evaluate

METHODS = ("magnitude", "wanda", "sparsegpt", "admm", "chain")
CHANNEL_METHODS = ("magnitude", "wanda", "chain")
PER_BATCH = 2048


@dataclass(frozen=True)
class Subject:
    """A model, the texts it is measured on, and its dense perplexities."""

    loaded: LoadedModel
    evaluations: dict[str, TextBlocks]
    length: int


def blocks_of(loaded: LoadedModel, spec: DatasetSpec, tokens: int, length: int, seed: int) -> TextBlocks:
    """At most `tokens` tokens of the texts of `spec`, packed."""
    task = loaded.info.lm_head or "causal"
    texts = load_all_texts(spec, 0, seed).texts
    whole = text_blocks(loaded.tokenizer, texts, length, task, loaded.info.vocab_size)
    count = max(2, tokens // length)
    return TextBlocks(whole.ids[:count], task, whole.maskable[:count], whole.mask_id, whole.vocab_size)


def batches_of(blocks: TextBlocks, length: int) -> list[dict[str, Tensor]]:
    """Calibration batches of one shape."""
    size = min(max(1, PER_BATCH // length), len(blocks) // 2)
    starts = range(0, len(blocks) - size + 1, size)
    return [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for at in starts
        for ids in [blocks.ids[at : at + size]]
    ]


def perplexities(subject: Subject, model: Any) -> dict[str, float]:
    """exp of the mean loss on every evaluation set."""
    task = subject.loaded.info.lm_head or "causal"
    return {
        name: math.exp(min(700.0, evaluate(model, blocks, task, 4, torch.device("cpu"))))
        for name, blocks in subject.evaluations.items()
    }


def one(subject: Subject, batches: Sequence[dict[str, Tensor]], method: str, pattern: Pattern) -> dict[str, Any]:
    """Prune a copy of the model and measure it."""
    model = copy.deepcopy(subject.loaded.model)
    stack = find_layout(model).stacks[0]
    begun = time.process_time()
    result = prune(model, stack, list(batches), PruneOptions(method, pattern))
    seconds = time.process_time() - begun
    return {
        "method": method,
        "pattern": str(pattern),
        "perplexity": perplexities(subject, model),
        "drift": result.drift[-1],
        "cpu_seconds": seconds,
        "lambdas": sorted({entry.shrink for entry in result.maps}),
    }


def rows(subject: Subject, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every method, pattern and seed."""
    for seed in range(arguments.seeds):
        spec = DatasetSpec(arguments.dataset, split="calibration")
        blocks = blocks_of(subject.loaded, spec, arguments.tokens, arguments.length, seed)
        batches = batches_of(blocks, arguments.length)
        for text in arguments.patterns.split(","):
            pattern = parse_pattern(text)
            for method in CHANNEL_METHODS if pattern.kind == "mlp" else METHODS:
                if arguments.methods and method not in arguments.methods.split(","):
                    continue
                yield {"seed": seed, **one(subject, batches, method, pattern)}


def table(found: Sequence[dict[str, Any]], dense: dict[str, float]) -> list[str]:
    """One line per pattern and method: means over seeds, ranges where there are several."""
    names = list(dense)
    lines = [
        f"{'pattern':9} {'method':10} " + " ".join(f"{name:>22}" for name in names) + f" {'drift':>8} {'CPU s':>7}"
    ]
    lines.append(f"{'-':9} {'dense':10} " + " ".join(f"{dense[name]:22.2f}" for name in names))
    for key in dict.fromkeys((row["pattern"], row["method"]) for row in found):
        same = [row for row in found if (row["pattern"], row["method"]) == key]
        cells = []
        for name in names:
            values = [row["perplexity"][name] for row in same]
            spread = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{f'{sum(values) / len(values):.2f}{spread}':>22}")
        drift = sum(row["drift"] for row in same) / len(same)
        seconds = sum(row["cpu_seconds"] for row in same) / len(same)
        lines.append(f"{key[0]:9} {key[1]:10} " + " ".join(cells) + f" {drift:8.4f} {seconds:7.1f}")
    return lines


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-gpt")
    parser.add_argument("--dataset", default="builtin")
    parser.add_argument("--out-of-domain", default=None, metavar="DATASET")
    parser.add_argument("--patterns", default="0.5,2:4,mlp:0.25")
    parser.add_argument("--methods", default="", help="only these, separated by commas")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    loaded = load(resolve(arguments.model), LoadOptions())
    heldout = DatasetSpec(arguments.dataset, split="heldout")
    evaluations = {"in domain": blocks_of(loaded, heldout, arguments.tokens, arguments.length, 0)}
    if arguments.out_of_domain:
        spec = DatasetSpec(arguments.out_of_domain)
        evaluations["out of domain"] = blocks_of(loaded, spec, arguments.tokens, arguments.length, 0)
    subject = Subject(loaded, evaluations, arguments.length)
    dense = perplexities(subject, loaded.model)
    found = []
    for row in rows(subject, arguments):
        found.append(row)
        if not arguments.json:
            print(f"seed {row['seed']} {row['pattern']} {row['method']}: {row['perplexity']}", flush=True)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "dense": dense, "rows": found}, indent=1))
    else:
        print("\n".join(table(found, dense)))


if __name__ == "__main__":
    main()
