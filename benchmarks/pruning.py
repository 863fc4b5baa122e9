"""Perplexity, drift and CPU seconds of every pruning method on one model, same calibration and evaluation texts.

    python -m benchmarks.pruning                                       # tiny-gpt: 0.5, 2:4, mlp:0.25
    python -m benchmarks.pruning --model tiny-bert --seeds 3
    python -m benchmarks.pruning --model FOLDER --calibration valid.txt --in-domain test.txt \
        --out-of-domain other.txt --length 512 --eval-tokens 6144 --seeds 3 --save RESULTS

Calibration is on the `calibration` split of --dataset, evaluation on its `heldout` split; or calibration is on the file
--calibration and evaluation on the first tokens of --in-domain and --out-of-domain, each file read as one stream. A
seed draws other calibration texts; what does not depend on them runs once. With --save every run is a JSON file, and
runs that are there are not repeated. The table shows means over seeds and ranges.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cohomcli.data.sample import load_all_texts
from cohomcli.data.spec import DatasetSpec
from cohomcli.models.load import load
from cohomcli.models.prefill import prefill_seconds
from cohomcli.models.probe import find_layout
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadedModel, LoadOptions
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.pattern import parse_pattern
from cohomcli.pruning.prune import prune
from cohomcli.training.data import TextBlocks, text_blocks
from cohomcli.training.loop import evaluate

METHODS = ("random", "magnitude", "wanda", "sparsegpt", "admm", "chain")
CHANNEL_METHODS = ("random", "magnitude", "wanda", "flap", "chain")
EXPERT_METHODS = ("random", "magnitude", "reap", "chain")
RANK_METHODS = ("svd", "asvd", "svdllm", "chain")
BLIND = ("random", "magnitude")  # methods that do not look at the calibration texts
PER_BATCH = 2048


@dataclass(frozen=True)
class Subject:
    """A model, the texts it is measured on, and its dense perplexities."""

    loaded: LoadedModel
    evaluations: dict[str, TextBlocks]
    dense: dict[str, float]


def stream_blocks(loaded: LoadedModel, path: str, length: int) -> TextBlocks:
    """The whole file as one stream of tokens, cut into blocks."""
    rows = loaded.tokenizer(Path(path).read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)
    ids = torch.tensor(rows["input_ids"])
    ids = ids[: len(ids) // length * length].reshape(-1, length)
    return TextBlocks(ids, "causal", torch.ones_like(ids, dtype=torch.bool), 0, loaded.info.vocab_size)


def first(blocks: TextBlocks, tokens: int) -> TextBlocks:
    """The first `tokens` tokens, at least two blocks."""
    count = max(2, tokens // blocks.ids.shape[1])
    return TextBlocks(blocks.ids[:count], blocks.task, blocks.maskable[:count], blocks.mask_id, blocks.vocab_size)


def dataset_blocks(loaded: LoadedModel, spec: DatasetSpec, length: int, seed: int) -> TextBlocks:
    """The texts of `spec` in the order of `seed`, packed."""
    texts = load_all_texts(spec, 0, seed).texts
    return text_blocks(loaded.tokenizer, texts, length, loaded.info.lm_head or "causal", loaded.info.vocab_size)


def calibration(loaded: LoadedModel, arguments: argparse.Namespace, seed: int) -> list[dict[str, Tensor]]:
    """Calibration batches of one shape."""
    length = arguments.length
    if arguments.calibration:
        blocks = stream_blocks(loaded, arguments.calibration, length)
        order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))
        ids = blocks.ids[order[: arguments.tokens // length]]
    else:
        spec = DatasetSpec(arguments.dataset, split="calibration")
        ids = first(dataset_blocks(loaded, spec, length, seed), arguments.tokens).ids
    size = min(max(1, PER_BATCH // length), len(ids) // 2)
    parts = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]


def evaluations(loaded: LoadedModel, arguments: argparse.Namespace) -> dict[str, TextBlocks]:
    """Held-out texts by name."""
    length = arguments.length
    if arguments.in_domain:
        found = {"in domain": first(stream_blocks(loaded, arguments.in_domain, length), arguments.eval_tokens)}
    else:
        spec = DatasetSpec(arguments.dataset, split="heldout")
        found = {"in domain": first(dataset_blocks(loaded, spec, length, 0), arguments.eval_tokens)}
    if arguments.out_of_domain:
        blocks = stream_blocks(loaded, arguments.out_of_domain, length)
        found["out of domain"] = first(blocks, arguments.out_tokens)
    return found


@torch.inference_mode()
def perplexities(model: Any, texts: dict[str, TextBlocks], task: str) -> dict[str, float]:
    """exp of the mean loss on every evaluation set."""
    device = torch.device("cpu")
    return {
        name: math.exp(min(700.0, evaluate(model, blocks, task, 2, device)))  # type: ignore[arg-type]
        for name, blocks in texts.items()
    }


def one(subject: Subject, batches: Sequence[dict[str, Tensor]], options: PruneOptions, prefill: bool) -> dict[str, Any]:
    """Prune a copy of the model and measure it."""
    model = copy.deepcopy(subject.loaded.model)
    stack = find_layout(model).stacks[0]
    begun = time.process_time()
    result = prune(model, stack, list(batches), options)
    seconds = time.process_time() - begun
    found: dict[str, Any] = {
        "method": options.method,
        "pattern": str(options.pattern),
        "perplexity": perplexities(model, subject.evaluations, subject.loaded.info.lm_head or "causal"),
        "drift": result.drift[-1],
        "cpu_seconds": seconds,
        "tokens": result.n_calibration_tokens,
        "lambdas": {f"{value:g}": sum(m.shrink == value for m in result.maps) for value in _shrinks(result.maps)},
    }
    if prefill:
        pairs = [(prefill_seconds(subject.loaded.model), prefill_seconds(model)) for _ in range(3)]
        found["prefill_cpu_seconds"] = [min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)]
        found["parameters"] = list(result.n_parameters)
    return found


def _shrinks(maps: Sequence[Any]) -> list[float]:
    return sorted({entry.shrink for entry in maps})


def plans(arguments: argparse.Namespace) -> Iterator[tuple[int, PruneOptions]]:
    """Every seed, pattern and method that was asked for."""
    wanted = arguments.methods.split(",") if arguments.methods else None
    shrink = None if arguments.shrink == "auto" else float(arguments.shrink)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for text in arguments.patterns.split(","):
            pattern = parse_pattern(text)
            for method in _methods(pattern.kind):
                if (wanted is None or method in wanted) and (method not in BLIND or seed == 0):
                    yield seed, PruneOptions(method, pattern, shrink if method == "chain" else None, seed)


def _methods(kind: str) -> tuple[str, ...]:
    if kind == "rank":
        return RANK_METHODS
    if kind == "experts":
        return EXPERT_METHODS
    return METHODS if kind in ("rows", "layer", "nm") else CHANNEL_METHODS


def rows(subject: Subject, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run what is planned, or read it where it was run before."""
    for seed, options in plans(arguments):
        name = f"{arguments.tag}{options.pattern}-{options.method}-{seed}.json".replace(":", "_")
        path = Path(arguments.save) / name if arguments.save else None
        if path is not None and path.exists():
            yield json.loads(path.read_text())
            continue
        batches = calibration(subject.loaded, arguments, seed)
        row = {"seed": seed, **one(subject, batches, options, arguments.prefill)}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row | {"dense": subject.dense}, indent=1))
        yield row


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


def arguments_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-gpt")
    parser.add_argument("--dataset", default="builtin")
    parser.add_argument("--calibration", metavar="FILE", help="plain text, one stream")
    parser.add_argument("--in-domain", metavar="FILE")
    parser.add_argument("--out-of-domain", metavar="FILE")
    parser.add_argument("--patterns", default="0.5,2:4,mlp:0.25")
    parser.add_argument("--methods", default="", help="only these, separated by commas")
    parser.add_argument("--lambda", dest="shrink", default="auto")
    parser.add_argument("--tokens", type=int, default=8192, help="of calibration")
    parser.add_argument("--eval-tokens", type=int, default=8192)
    parser.add_argument("--out-tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--prefill", action="store_true", help="also CPU seconds of a 512-token forward pass")
    parser.add_argument("--save", metavar="FOLDER", help="a JSON file for every run; what is there is not repeated")
    parser.add_argument("--tag", default="", help="starts the names of these files")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Run the comparison."""
    arguments = arguments_of()
    loaded = load(resolve(arguments.model), LoadOptions())
    texts = evaluations(loaded, arguments)
    dense_path = Path(arguments.save) / "dense.json" if arguments.save else None
    if dense_path is not None and dense_path.exists():
        dense = json.loads(dense_path.read_text())
    else:
        dense = perplexities(loaded.model, texts, loaded.info.lm_head or "causal")
        if dense_path is not None:
            dense_path.parent.mkdir(parents=True, exist_ok=True)
            dense_path.write_text(json.dumps(dense))
    subject = Subject(loaded, texts, dense)
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
