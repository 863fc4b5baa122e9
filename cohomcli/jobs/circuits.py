"""The job behind `cohom circuits`: a model, pairs of prompts, the search; a run folder with the circuit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config, dump_yaml
from cohomcli.data.pairs import Pair, TokenPair, encode_pairs, pair_record
from cohomcli.errors import InputRefused, UsageError
from cohomcli.jobs.analyze import Finished, Outcome, write_outcome
from cohomcli.jobs.compute import prepare
from cohomcli.jobs.entry import load_options
from cohomcli.jobs.verdicts import check_targets, write_verdict
from cohomcli.names import safe_name
from cohomcli.progress import Progress
from cohomcli.results import SCHEMA, Claim, Entry
from cohomcli.runs.circuits import CIRCUIT_FILE, circuit_file
from cohomcli.runs.entries import save_entry
from cohomcli.runs.files import to_json
from cohomcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from cohomcli.circuits.results import CircuitOptions, CircuitResult
    from cohomcli.models.layout import Stack
    from cohomcli.models.spec import LoadedModel

COMMAND = "circuits"
PAIRS_FILE = "artifacts/pairs.jsonl"


@dataclass(frozen=True)
class _Parts:
    """What is known before the search."""

    loaded: LoadedModel
    stack: Stack
    pairs: list[Pair]
    tokens: list[TokenPair]
    options: CircuitOptions
    task: str


def circuits(config: Config, argv: list[str], progress: Progress) -> Outcome:
    """Find the circuit of the one model of `config` for its task, into a new run folder.

    Raises:
        CohomError: refused input or options, or a model that does not do the task; nothing is left behind then.
    """
    check_targets(config.output)
    prepare(config.compute)
    parts = _prepare(config)
    run = RunFolder.create(
        Path(config.output.dir), COMMAND, parts.loaded.info.name, argv, config.output.name, dump_yaml(config)
    )
    with run:
        result = _discover(parts, progress)
        lines = "".join(json.dumps(pair_record(pair), ensure_ascii=False) + "\n" for pair in parts.pairs)
        run.write(PAIRS_FILE, lines)
        found = circuit_file(result, parts.loaded.info, sha256(lines.encode()).hexdigest())
        run.write(CIRCUIT_FILE, to_json(found))
        run.manifest["seconds"] = round(result.seconds, 3)
        entry = Entry(
            model=parts.loaded.info.name,
            dataset=parts.task,
            info=parts.loaded.info,
            circuits=result,
            claims=tuple(_claims(result)),
            notes=parts.loaded.notes,
        )
        save_entry(run, entry)
        outcome = write_outcome(run, Finished(COMMAND, config, [entry]), progress)
    write_verdict(outcome, config.output)
    return outcome


def _prepare(config: Config) -> _Parts:
    from cohomcli.data.tasks import TASKS, task_pairs
    from cohomcli.models.load import load
    from cohomcli.models.probe import find_layout
    from cohomcli.models.resolve import resolve
    from cohomcli.models.wiring import wire

    if len(config.models) != 1:
        raise UsageError("circuits takes one model", "run it once for each")
    wanted = config.circuits
    options = _options(config)
    loaded = load(resolve(config.models[0]), load_options(config))
    if loaded.info.kind != "decoder" or loaded.info.lm_head != "causal":
        raise InputRefused(
            f"{loaded.info.name} is no decoder with a language-modelling head ({loaded.info.kind})",
            "circuits are found in models that predict the next token",
        )
    stack = find_layout(loaded.model).stacks[0]
    wire(loaded.model, stack)  # refuses unknown families before anything is made
    pairs = task_pairs(wanted.task, loaded.tokenizer, wanted.pairs, config.compute.seed)
    tokens = encode_pairs(loaded.tokenizer, pairs)
    longest = max(len(pair.clean) for pair in tokens)
    if loaded.info.max_positions is not None and longest > loaded.info.max_positions:
        raise InputRefused(f"a prompt has {longest} tokens and the model {loaded.info.max_positions} positions")
    task = wanted.task if wanted.task in TASKS else safe_name(Path(wanted.task).stem)
    return _Parts(loaded, stack, pairs, tokens, options, task)


def _options(config: Config) -> CircuitOptions:
    from cohomcli.circuits.discover import check_options
    from cohomcli.circuits.results import CircuitOptions

    wanted = config.circuits
    same = ("level", "method", "base", "ablation", "steps", "tolerance", "draws", "check", "minimise")
    options = CircuitOptions(
        metric=_metric(wanted.task, wanted.metric),
        seed=config.compute.seed,
        **{name: getattr(wanted, name) for name in same},
    )
    check_options(options)
    return options


def _metric(task: str, wished: str) -> str:
    """The metric that a shipped task is published with, unless another is wished for."""
    return wished if wished != "auto" else "probability" if task == "greater-than" else "logit"


def _discover(parts: _Parts, progress: Progress) -> CircuitResult:
    from cohomcli.circuits.discover import discover

    return discover(parts.loaded.model, parts.stack, parts.tokens, parts.options, parts.task, progress)


def _claims(result: CircuitResult) -> Iterator[Claim]:
    what = f"{len(result.circuit)} of {result.n_components} {result.options.level} keep {result.faithfulness:.1%}"
    yield Claim(
        f"{what} of the {result.options.metric} difference on {result.n_heldout} held-out pairs of {result.task} when "
        f"all others are replaced ({result.options.ablation})",
        "measured",
    )
    if result.options.method != "exact":
        steps = f", {result.options.steps} steps" if result.options.method == "integrated" else ""
        how = f"{result.options.method}{steps}"
        yield Claim(f"effects of {result.n_components} {result.options.level} by {how}", "estimated")


def plan(config: Config) -> dict[str, Any]:
    """What `--dry-run` says; nothing is written.

    Raises:
        CohomError: what the search would refuse.
    """
    from cohomcli.circuits.discover import graph_of
    from cohomcli.models.wiring import wire

    parts = _prepare(config)
    blocks = wire(parts.loaded.model, parts.stack)
    graph = graph_of(parts.loaded.model, parts.stack, blocks, replace(parts.options))
    tokens = sum(len(pair.clean) for pair in parts.tokens)
    width = parts.loaded.info.hidden_size
    if parts.options.level == "edges":
        channels = sum(block.n_heads + 1 for block in blocks) * width
    else:
        channels = sum(block.n_heads * block.head_dim + block.width for block in blocks)
    return {
        "schema": SCHEMA,
        "command": COMMAND,
        "status": "dry-run",
        "model": parts.loaded.info.name,
        "task": parts.task,
        "metric": parts.options.metric,
        "n_pairs": len(parts.pairs),
        "n_components": len(graph.components),
        # what both sides write is kept, in float32
        "memory_bytes": 2 * 4 * tokens * channels,
        "config": config.model_dump(mode="json"),
    }
