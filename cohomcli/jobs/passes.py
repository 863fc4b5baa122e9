"""The passes of `cohom prune`: prune, measure, recover, measure; once, or step by step with --rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config
from cohomcli.errors import AnalysisIncomplete
from cohomcli.jobs.prune_measures import paired, perplexities
from cohomcli.jobs.prune_parts import Parts, stack_of
from cohomcli.jobs.prune_save import pruned_weights
from cohomcli.progress import Progress

if TYPE_CHECKING:
    from cohomcli.pruning.gradual import DenseStates
    from cohomcli.pruning.options import PruneOptions
    from cohomcli.pruning.results import Pass, PruningResult
    from cohomcli.pruning.truncate import Factors


@dataclass
class Passes:
    """What is known while passes go on: perplexities after pruning and after recovery, factors, tokens trained on."""

    done: list[Pass] = field(default_factory=list)
    factors: dict[str, Factors] = field(default_factory=dict)
    n_tokens: int = 0


def check(options: PruneOptions, loaded: Any, config: Config) -> None:
    """Refuse what cannot be done before anything is computed.

    Raises:
        UsageError: several passes of a pattern that goes in one.
        AnalysisIncomplete: a step of the recovery does not fit into memory.
    """
    from cohomcli.models.memory import available_bytes, gigabytes
    from cohomcli.pruning.gradual import passes

    wanted = config.pruning
    passes(options, wanted.rounds)
    if wanted.recover and (needed := _training_bytes(loaded, config)) > (free := available_bytes()):
        raise AnalysisIncomplete(
            f"--recover needs about {gigabytes(needed)} and {gigabytes(free)} is free",
            "use a machine with more memory, --set training.batch_size=1, or a shorter --block-size",
        )


def planned_passes(parts: Parts, config: Config) -> dict[str, Any]:
    """What --dry-run says of passes and recovery; nothing where there is one pass and no recovery."""
    from cohomcli.pruning.gradual import passes

    found: dict[str, Any] = {}
    if config.pruning.rounds > 1:
        found["passes"] = [options.pattern.sparsity for options in passes(parts.options, config.pruning.rounds)]
    if config.pruning.recover:
        found["recovery_memory_bytes"] = _training_bytes(parts.loaded, config)
    return found


def _training_bytes(loaded: Any, config: Config) -> int:
    """Memory that a step of recovery takes beside the model."""
    from cohomcli.jobs.recover import train_options
    from cohomcli.training.forecast import forecast_bytes

    there: int = 4 * sum(p.numel() for p in loaded.model.parameters())
    return forecast_bytes(loaded.model, train_options(config), config.pruning.block_size) - there


def prune_in_passes(
    parts: Parts, config: Config, before: list[float], progress: Progress
) -> tuple[PruningResult, dict[str, Factors]]:
    """Prune the model in place, with the perplexities of every step, and the factors of maps that became products."""
    from cohomcli.pruning.gradual import passes

    steps, state = passes(parts.options, config.pruning.rounds), Passes()
    several = len(steps) > 1 or config.pruning.recover > 0
    with _dense_states(parts) if several else nullcontext() as dense:
        results = [_one(parts, config, options, state, progress) for options in steps]
        result = replace(results[-1], seconds=sum(one.seconds for one in results))
        if dense is not None:
            result = _from_the_dense(parts, result, results[0], dense)
    last = state.done[-1]
    pairs = tuple(paired(parts, before, list(last.recovered or last.pruned)))
    if last.recovered:
        pairs = tuple(replace(one, pruned=found) for one, found in zip(pairs, last.pruned, strict=True))
    return replace(
        result,
        perplexity=pairs,
        passes=tuple(state.done) if several else (),
        recovery=_recovery(config, state),
    ), state.factors


def _one(parts: Parts, config: Config, options: PruneOptions, state: Passes, progress: Progress) -> PruningResult:
    """One pass, with its recovery."""
    from cohomcli.pruning.prune import prune
    from cohomcli.pruning.results import Pass

    stack = stack_of(parts.loaded.model)
    result = prune(parts.loaded.model, stack, parts.batches, options, progress, state.factors.__setitem__)
    found = perplexities(parts, progress, "evaluate pruned", "choose a lower sparsity")
    recovered: list[float] = []
    if config.pruning.recover:
        state.n_tokens += _recover(parts, config, result, state, progress)
        recovered = perplexities(parts, progress, "evaluate recovered", "choose a lower --recover-lr")
    state.done.append(Pass(str(options.pattern), result.sparsity, tuple(found), tuple(recovered)))
    return result


def _recover(parts: Parts, config: Config, result: PruningResult, state: Passes, progress: Progress) -> int:
    """Fine-tune; tokens that were predicted."""
    from cohomcli.jobs.recover import recover, train_options
    from cohomcli.pruning.gradual import zeros_of
    from cohomcli.pruning.lowrank import factored
    from cohomcli.pruning.pattern import STRUCTURED

    masks = {}
    if parts.options.pattern.kind not in STRUCTURED:
        masks = zeros_of(parts.loaded.model, [weight for _, weight in pruned_weights(parts, result)])
    options = train_options(config, len(state.done))
    with factored(stack_of(parts.loaded.model), state.factors):
        return recover(parts.loaded, parts.blocks, masks, options, progress).tokens


@contextmanager
def _dense_states(parts: Parts) -> Iterator[DenseStates]:
    from cohomcli.pruning.gradual import DenseStates
    from cohomcli.pruning.shelf import Shelf

    model = parts.loaded.model
    with tempfile.TemporaryDirectory(prefix="cohom-") as folder:
        yield DenseStates(model, stack_of(model), parts.batches, Shelf(Path(folder)))


def _from_the_dense(parts: Parts, result: PruningResult, first: PruningResult, dense: DenseStates) -> PruningResult:
    """The last pass's result with counts and drift from the dense model to the recovered one."""
    model = parts.loaded.model
    drift = dense.drift(model, stack_of(model), result.blocks_gone)
    nonzero = sum(int(p.count_nonzero()) for p in model.parameters())
    return replace(
        result,
        drift=drift,
        n_parameters=(first.n_parameters[0], result.n_parameters[1]),
        n_nonzero=(first.n_nonzero[0], nonzero),
    )


def _recovery(config: Config, state: Passes) -> Any:
    from cohomcli.pruning.results import Recovery

    wanted = config.pruning
    return Recovery(wanted.recover, wanted.recover_lr, state.n_tokens) if wanted.recover else None
