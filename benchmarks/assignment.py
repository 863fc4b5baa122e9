"""The assignment solver on transformer-like graphs: seconds, certified gap, and what greedy choices would cost.

    python -m benchmarks.assignment                               # 131, 257, 1048 and 3144 ops, four formats
    python -m benchmarks.assignment --ops 131 --formats fp32,fp16 --seeds 5

Graphs are GPT-2-like: pre-norm blocks of width 768 with their weights, an embedding tied to the head, 32 tokens.
Scores are drawn log-normally over some seven orders of magnitude per format; one op in eight leaves fp16's range and
one in three may not take e4m3. The tolerance admits a given share of the error of storing everything in fp16. The
objective is bytes (weights, activations written and read, casts). `ops` counts results, `vertices` also weights.

`greedy` is ADAPT's rule (Menon et al., "ADAPT: algorithmic differentiation applied to floating-point precision tuning",
SC 2018): demote by ascending error until the tolerance is reached; here from each format to the next narrower one.
It knows no casts: `descended` lets single moves, casts counted, improve what it found, and `castless` compares both
sides where casts are free. All are in percent above our objective.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cohomcli.precision.assignment import solve
from cohomcli.precision.certificate import check
from cohomcli.precision.contraction import Contraction, contract
from cohomcli.precision.descent import Descent
from cohomcli.precision.formats import FORMATS
from cohomcli.precision.problem import Wishes, build_problem
from cohomcli.precision.spec import Admissibility, ComputationGraph, Problem, Sensitivity, Solution, Vertex

WIDTH, TOKENS, HEADS, VOCABULARY = 768, 32, 12, 50257
SHARES = (1.0, 0.3, 0.1, 0.03)


class Sketch:
    """Vertices in topological order."""

    def __init__(self) -> None:
        self.vertices: list[Vertex] = []
        self.n_ops = 0

    def add(self, kind: Any, shape: tuple[int, ...], *operands: int, fixed: str = "") -> int:
        """A vertex; its index."""
        index = len(self.vertices)
        dtype = "int64" if fixed else "float32"
        storage = f"s{index}" if kind == "weight" else ""
        target = "aten.op.default" if kind == "op" else ""
        self.n_ops += kind == "op"
        numel = math.prod(shape)
        self.vertices.append(
            Vertex(index, f"v{index}", kind, target, "", shape, dtype, numel, operands, storage, fixed)
        )
        return index

    def linear(self, x: int, n_in: int, n_out: int) -> int:
        """A linear layer with bias on every token."""
        return self.add("op", (TOKENS, n_out), x, self.add("weight", (n_out, n_in)), self.add("weight", (n_out,)))

    def norm(self, x: int) -> int:
        """A layer normalisation with its weight and bias."""
        return self.add("op", (TOKENS, WIDTH), x, self.add("weight", (WIDTH,)), self.add("weight", (WIDTH,)))

    def block(self, x: int) -> int:
        """One pre-norm block of 20 ops: attention, then an mlp with GELU written out."""
        stream, square = (TOKENS, WIDTH), (HEADS, TOKENS, TOKENS)
        h = self.norm(x)
        q, k, v = (self.linear(h, WIDTH, WIDTH) for _ in range(3))
        scores = self.add("op", square, q, k)
        for _ in range(3):  # scale, mask, softmax
            scores = self.add("op", square, scores)
        attended = self.add("op", stream, scores, v)
        x = self.add("op", stream, x, self.linear(attended, WIDTH, WIDTH))
        inner, wide = self.linear(self.norm(x), WIDTH, 4 * WIDTH), (TOKENS, 4 * WIDTH)
        cube = self.add("op", wide, self.add("op", wide, inner))
        gate = self.add("op", wide, self.add("op", wide, self.add("op", wide, inner, cube)))
        return self.add("op", stream, x, self.linear(self.add("op", wide, inner, gate), 4 * WIDTH, WIDTH))


def transformer(n_ops: int) -> ComputationGraph:
    """A graph of at least `n_ops` ops: embedding, blocks, final norm and a head tied to the embedding."""
    s = Sketch()
    ids = s.add("input", (TOKENS,), fixed="input")
    table = s.add("weight", (VOCABULARY, WIDTH))
    x = s.add("op", (TOKENS, WIDTH), table, ids)
    while s.n_ops < n_ops - 2:
        x = s.block(x)
    return ComputationGraph(tuple(s.vertices), (s.add("op", (TOKENS, VOCABULARY), s.norm(x), table),))


def random_problem(graph: ComputationGraph, formats: tuple[str, ...], seed: int) -> Problem:
    """The bytes problem of a graph with random scores; its budget is the error of everything in the second format."""
    random = np.random.default_rng(seed)
    n = len(graph.vertices)
    noise = np.array([FORMATS[f].unit_roundoff ** 2 for f in formats])
    scores = 10.0 ** random.normal(0, 1.2, (n, 1)) * noise * 10.0 ** random.normal(0, 0.1, (n, len(formats)))
    allowed = np.ones((n, len(formats)), dtype=bool)
    for name, share in (("fp16", 1 / 8), ("e4m3", 1 / 3)):
        if name in formats:
            allowed[random.random(n) < share, formats.index(name)] = False
    reference = formats.index("fp16") if "fp16" in formats else 1
    epsilon = math.sqrt(sum(scores[v.index, reference] for v in graph.vertices if not v.fixed))
    sensitivity = Sensitivity(formats, scores, scores, scores, 16, "rel-l2")
    return build_problem(graph, sensitivity, Admissibility(formats, allowed, {}), epsilon, Wishes())


# --- greedy rules -----------------------------------------------------------------------------------------------------


def _by_accuracy(contraction: Contraction, group: int) -> list[int]:
    """Formats of a group from the most accurate on, those left out that are no cheaper than one before."""
    cost, error = contraction.cost[group], contraction.error[group]
    ladder: list[int] = []
    for f in sorted(contraction.domains[group], key=lambda f: (error[f], cost[f])):
        if not ladder or cost[f] < cost[ladder[-1]]:
            ladder.append(f)
    return ladder


def greedy(contraction: Contraction) -> list[int]:
    """ADAPT's rule: steps down the ladders of formats by ascending error, while the budget lasts; casts are ignored."""
    ladders = [_by_accuracy(contraction, i) for i in range(len(contraction.members))]
    choice = [ladder[0] for ladder in ladders]
    spent = contraction.error_of(choice)
    budget = contraction.budget or 0
    steps = sorted(
        (contraction.error[i][f], rung, i) for i, ladder in enumerate(ladders) for rung, f in enumerate(ladder) if rung
    )
    for error, rung, i in steps:
        more = error - contraction.error[i][choice[i]]
        if spent + more <= budget:
            spent += more
            choice[i] = ladders[i][rung]
    return choice


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One solved problem; `above` are the greedy rules' costs relative to ours, minus 1."""

    solution: Solution
    cpu_seconds: float
    check_seconds: float
    above: tuple[float, float, float]


def measure(problem: Problem, time_limit: float) -> Row:
    """Solve, check, and compare with the greedy rules."""
    started = time.process_time()
    solution = solve(problem, time_limit)
    cpu = time.process_time() - started
    assert solution.certificate is not None
    started = time.process_time()
    assert check(problem, solution.certificate)
    checking = time.process_time() - started
    contraction = contract(problem)
    choice = greedy(contraction)
    descended = Descent(contraction, contraction.domains).descend(choice)
    free = replace(problem, cast_cost=np.zeros_like(problem.cast_cost))
    above = (
        _above(contraction, choice, solution),
        _above(contraction, descended, solution),
        _above(contract(free), greedy(contract(free)), solve(free, time_limit)),
    )
    return Row(solution, cpu, checking, above)


def _above(contraction: Contraction, choice: list[int], solution: Solution) -> float:
    assert contraction.within_budget(choice)
    assert solution.objective is not None
    return float(contraction.objective(choice)) / solution.objective - 1


def main() -> None:
    """Print one line per problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ops", default="131,257,1048,3144")
    parser.add_argument("--formats", default="fp32,bf16,fp16,e4m3")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--time-limit", type=float, default=30.0)
    arguments = parser.parse_args()
    formats = tuple(arguments.formats.split(","))
    print("   ops vertices  share  seconds   cpu  check  objective MB  certified gap   greedy descended castless")
    gaps, above = [], []
    for n_ops in map(int, arguments.ops.split(",")):
        graph = transformer(n_ops)
        ops = sum(v.kind == "op" for v in graph.vertices)
        for seed in range(arguments.seeds):
            problem = random_problem(graph, formats, seed)
            for share in SHARES:
                row = measure(replace(problem, budget=problem.budget * share), arguments.time_limit)
                found = row.solution
                gaps.append(found.gap or 0.0)
                above.append(row.above)
                print(
                    f"{ops:6d} {len(graph.vertices):8d} {share:6.2f} {found.seconds:8.1f} {row.cpu_seconds:5.1f} "
                    f"{row.check_seconds:6.2f} {(found.objective or 0) / 1e6:13.2f} {gaps[-1]:14.2e} "
                    f"{row.above[0]:+8.1%} {row.above[1]:+9.1%} {row.above[2]:+8.1%}",
                    flush=True,
                )
    print(f"certified gap: median {np.median(gaps):.2e}, largest {max(gaps):.2e}")
    for name, column in zip(("greedy", "descended", "castless"), zip(*above, strict=True), strict=True):
        print(f"{name}: at least 5% above ours in {sum(a >= 0.05 for a in column)} of {len(above)} cases")


if __name__ == "__main__":
    main()
