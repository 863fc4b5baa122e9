"""Circuits: attribution against exact patching, the known heads of an induction model, and pruning around a circuit.

    python -m benchmarks.circuits                        # trains nine small models first, which are kept in the cache
    python -m benchmarks.circuits --part agreement --families gpt2,llama,gpt_neox,phi
    python -m benchmarks.circuits --part induction
    python -m benchmarks.circuits --part protect --ratio 0.5
    python -m benchmarks.circuits --part model --model FOLDER --task ioi --pairs 16

Every effect is over all heads and MLPs (or, of a large model, over those that --check allows). Half of the pairs find a
circuit, half judge it; what pruning keeps is measured on the judging half, and on the clean prompts alone.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.circuit_models import (
    FAMILIES,
    Rounds,
    induction_tokenizer,
    trained,
    word_tokenizer,
)
from cohomcli.circuits.batches import batches_of, plain
from cohomcli.circuits.discover import bench_of, discover, graph_of
from cohomcli.circuits.results import CircuitOptions, CircuitResult
from cohomcli.circuits.scores import METHODS, agreement, exact_effects, to_check
from cohomcli.data.pairs import TokenPair, encode_pairs
from cohomcli.data.tasks import task_pairs
from cohomcli.errors import UsageError
from cohomcli.models.attentions import attention_maps
from cohomcli.models.load import load
from cohomcli.models.probe import find_layout
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadedModel, LoadOptions
from cohomcli.models.wiring import wire
from cohomcli.progress import silent
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.pattern import parse_pattern
from cohomcli.pruning.preserve import CircuitPreservationPruner
from cohomcli.pruning.prune import prune

TASKS = ("ioi", "greater-than", "induction")
LEAST_RIGHT, LEAST_GONE = 0.75, 0.1
LENGTH, BLOCKS = 32, 64  # of the calibration: general text of the small models' world


@dataclass(frozen=True)
class Subject:
    """A model with pairs of one task."""

    loaded: LoadedModel
    task: str
    pairs: list[TokenPair]

    @property
    def options(self) -> CircuitOptions:
        """The metric the task is published with."""
        return CircuitOptions(metric="probability" if self.task == "greater-than" else "logit")

    @property
    def stack(self) -> Any:
        """The model's only stack."""
        return find_layout(self.loaded.model).stacks[0]


def subject(reference: str, task: str, count: int, seed: int = 0) -> Subject:
    """The model in a folder with fresh pairs."""
    loaded = load(resolve(reference), LoadOptions())
    return Subject(loaded, task, pairs_for(loaded, task, count, seed))


def pairs_for(loaded: LoadedModel, task: str, count: int, seed: int) -> list[TokenPair]:
    """Pairs in the words of the model; of induction in those that the small models were trained on."""
    small = task == "induction" and loaded.info.vocab_size == len(word_tokenizer())
    words = induction_tokenizer() if small else loaded.tokenizer
    return encode_pairs(loaded.tokenizer, task_pairs(task, words, count, seed))


def learnt(one: Subject) -> tuple[float, float]:
    """Share of the clean prompts after which right answers have the larger mean logit, and the part of the metric that
    is gone on corrupt prompts: a model without either does not do the task in the way the pairs ask about.
    """
    batches = batches_of(one.pairs, torch.device("cpu"))
    clean, corrupt = (plain(one.loaded.model, batches, side, "logit") for side in ("clean", "corrupt"))
    return float((clean > 0).float().mean()), float(1 - corrupt.mean() / clean.mean())


def does_task(one: Subject) -> bool:
    """Whether both are large enough for a circuit to mean anything."""
    right, gone = learnt(one)
    return right >= LEAST_RIGHT and gone >= LEAST_GONE


# ---- attribution against exact patching ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """Pearson correlation and equal signs of one method with exact patching, and its CPU seconds."""

    method: str
    pearson: float
    same_sign: float
    seconds: float


def compare(one: Subject, base: str, check: int = 10**9) -> tuple[int, float, list[Compared]]:
    """Number of components, CPU seconds of exact patching, and every method's agreement with it, on all pairs."""
    options = replace(one.options, base=base)
    model = one.loaded.model
    graph = graph_of(model, one.stack, wire(model, one.stack), options)
    bench = bench_of(model, graph, one.pairs, options)
    effects: dict[str, tuple[Tensor, float]] = {}
    for method, steps in (("attribution", 1), ("integrated", 5)):
        begun = time.process_time()
        scored = METHODS.get(method)(bench, replace(options, steps=steps), silent).mean(0)
        name = method if method == "attribution" else f"{method}, {steps}"
        effects[name] = (scored, time.process_time() - begun)
    chosen = to_check(effects["integrated, 5"][0], check, 0)
    begun = time.process_time()
    exact = exact_effects(bench, options, chosen).mean(0)
    spent = time.process_time() - begun
    found = []
    for name, (scored, seconds) in effects.items():
        agreed = agreement(scored, exact, chosen)
        found.append(Compared(name, agreed.pearson or 0.0, agreed.same_sign, seconds))
    return len(chosen), spent, found


def agreement_part(families: Sequence[str], tasks: Sequence[str], count: int, seed: int) -> None:
    """Every family on every task, exchanging in the clean and in the corrupt run."""
    print(f"{'family':9} {'task':13} {'base':8} {'right':>6} {'n':>3}  Pearson with exact patching (CPU s)")
    for family in families:
        for task in tasks:
            one = subject(str(trained(family, task)), task, count, seed)
            right, gone = learnt(one)
            if not does_task(one):
                print(f"{family:9} {task:13} not learnt: {right:.1%} right, {gone:.1%} gone when corrupt", flush=True)
                continue
            for base in ("clean", "corrupt"):
                n, spent, rows = compare(one, base)
                cells = "  ".join(f"{row.method} {row.pearson:.3f} ({row.seconds:.1f})" for row in rows)
                print(f"{family:9} {task:13} {base:8} {right:6.1%} {n:3}  {cells}  exact ({spent:.1f})", flush=True)


# ---- a model whose heads are known -----------------------------------------------------------------------------------


def induction_part(count: int, seed: int) -> None:
    """The circuit of the GPT-NeoX trained on induction, beside what its attention patterns say on their own."""
    one = subject(str(trained("gpt_neox", "induction")), "induction", count, seed)
    for level in ("heads", "edges"):
        options = replace(one.options, level=level, minimise=level == "heads", check=15)
        print(_line(level, discover(one.loaded.model, one.stack, one.pairs, options, "induction")), flush=True)
    print("attention, independent of the circuit: weight on the token before; on the token after the same word before")
    for name, (previous, again) in pattern_scores(one).items():
        print(f"  {name}  {previous:.3f}  {again:.3f}")


def pattern_scores(one: Subject) -> dict[str, tuple[float, float]]:
    """By head, mean weights (previous token, induction) on the clean prompts (Olsson et al. 2022, arXiv:2209.11895)."""
    decode = one.loaded.tokenizer.decode
    sums: dict[str, Tensor] = {}
    for pair in one.pairs:
        ids = list(pair.clean)
        maps = next(attention_maps(one.loaded, [decode(ids)], len(ids)))
        earlier = [max((k for k in range(i) if ids[k] == ids[i]), default=-1) for i in range(len(ids))]
        again = [(i, k + 1) for i, k in enumerate(earlier) if k >= 0]
        for layer, weights in maps.items():
            for head, a in enumerate(torch.from_numpy(weights)):
                before = a.diagonal(-1).mean()
                after = torch.stack([a[i, k] for i, k in again]).mean()
                name = f"{layer}.head_{head}"
                sums[name] = sums.get(name, torch.zeros(2)) + torch.stack([before, after]) / len(one.pairs)
    return {name: (float(value[0]), float(value[1])) for name, value in sums.items()}


# ---- pruning around a circuit ----------------------------------------------------------------------------------------


def calibration(one: Subject) -> list[dict[str, Tensor]]:
    """Blocks of the task's training text, in batches of sixteen; no pair of the test is drawn for it."""
    rounds = Rounds(one.loaded.tokenizer, one.task, 7)
    stream: list[int] = []
    step = 0
    while len(stream) < LENGTH * BLOCKS:
        stream += rounds.batch(step).ids[0].tolist()
        step += 1
    ids = torch.tensor(stream[: LENGTH * BLOCKS]).reshape(BLOCKS, LENGTH)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.chunk(BLOCKS // 16)]


def protect_part(families: Sequence[str], tasks: Sequence[str], arguments: argparse.Namespace) -> None:
    """The task's metric on held-out clean prompts after pruning, as a share of the dense model's."""
    print(f"{'family':9} {'task':13} {'method':10} {'circuit':>9} {'faithful':>10}  {'free':>7} {'protected':>9}")
    for family in families:
        for task in tasks:
            one = subject(str(trained(family, task)), task, arguments.pairs, arguments.seed)
            if not does_task(one):
                continue
            options = replace(
                one.options, level="neurons", ablation=arguments.ablation, tolerance=arguments.tolerance, minimise=False
            )
            result = discover(one.loaded.model, one.stack, one.pairs, options, task)
            for method in arguments.methods.split(","):
                try:
                    row = protect_row(one, result, method, arguments.ratio, arguments.seed)
                except UsageError as error:
                    row = f"{method:10} {len(result.circuit):4}/{result.n_components:4} not protected: {error.message}"
                print(f"{family:9} {task:13} {row}", flush=True)


def protect_row(one: Subject, result: CircuitResult, method: str, ratio: float, seed: int) -> str:
    """One method, with and without protection."""
    fresh = pairs_for(one.loaded, one.task, 128, seed + 1)
    batches, batch = batches_of(fresh, torch.device("cpu"), 64), calibration(one)
    metric: Any = one.options.metric
    dense = float(plain(one.loaded.model, batches, "clean", metric).mean())
    free = copy.deepcopy(one.loaded.model)
    prune(free, find_layout(free).stacks[0], batch, PruneOptions(method, parse_pattern(str(ratio))))
    kept = copy.deepcopy(one.loaded.model)
    pruned = CircuitPreservationPruner(kept, ratio, method).prune(result.circuit, batch)
    shares = [float(plain(model, batches, "clean", metric).mean()) / dense for model in (free, kept)]
    spared = sum(m.shape[0] * m.shape[1] * (1 - m.sparsity) for m in pruned.maps)
    return (
        f"{method:10} {len(result.circuit):4}/{result.n_components:4} {result.faithfulness:10.3f}  {shares[0]:7.1%} "
        f"{shares[1]:9.1%}  {pruned.sparsity:.4f} ({spared:,.0f} left)"
    )


# ---- one model by name -----------------------------------------------------------------------------------------------


def model_part(arguments: argparse.Namespace) -> None:
    """Agreement and circuit of one model on one task."""
    one = subject(arguments.model, arguments.task, arguments.pairs, arguments.seed)
    for base in arguments.bases.split(","):
        n, spent, rows = compare(one, base, arguments.check)
        cells = "  ".join(f"{row.method} {row.pearson:.3f} ({row.seconds:.1f})" for row in rows)
        print(f"{one.loaded.info.name} {one.task} {base}: {n} components: {cells}  exact ({spent:.1f})", flush=True)


def _line(level: str, result: CircuitResult) -> str:
    agreed = result.agreement.pearson if result.agreement else None
    members = ", ".join(result.circuit[:12])
    return (
        f"{level}: {len(result.circuit)} of {result.n_components}, faithfulness {result.faithfulness:.3f} "
        f"({result.low:.3f} to {result.high:.3f}), Pearson {agreed if agreed is None else round(agreed, 3)}: {members}"
    )


def _parts(arguments: argparse.Namespace) -> Iterator[str]:
    yield from ("agreement", "induction", "protect") if arguments.part == "all" else (arguments.part,)


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="all", choices=["all", "agreement", "induction", "protect", "model"])
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--tasks", default=",".join(TASKS), help="of the small models")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--methods", default="magnitude,wanda,chain")
    parser.add_argument("--ablation", default="mean")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--model", default="tiny-gpt")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--check", type=int, default=40)
    parser.add_argument("--bases", default="clean,corrupt")
    arguments = parser.parse_args()
    families, tasks = arguments.families.split(","), arguments.tasks.split(",")
    for part in _parts(arguments):
        if part == "agreement":
            agreement_part(families, tasks, arguments.pairs, arguments.seed)
        elif part == "induction":
            induction_part(arguments.pairs, arguments.seed)
        elif part == "protect":
            protect_part([f for f in families if f != "gpt_neox"], tasks, arguments)
        else:
            model_part(arguments)


if __name__ == "__main__":
    main()
