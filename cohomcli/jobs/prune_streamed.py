"""`cohom prune --stream`: a model larger than memory, read, pruned, measured and written block by block."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config
from cohomcli.errors import UsageError
from cohomcli.jobs.entry import load_options
from cohomcli.jobs.prune_measures import paired, perplexities
from cohomcli.jobs.prune_parts import EVALUATED, Parts
from cohomcli.jobs.prune_save import FOLDER, packed, save_beside, verified
from cohomcli.jobs.reload import logits_of
from cohomcli.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from cohomcli.models.spec import LoadedModel, LoadOptions, ModelSource
    from cohomcli.models.streamed import BlockStore, StreamedModel
    from cohomcli.pruning.options import PruneOptions
    from cohomcli.pruning.results import PruningResult
    from cohomcli.runs.folder import RunFolder

logger = logging.getLogger(__name__)
NOTE = (
    "pruned block by block (--stream): exactness and the time of a forward pass need the whole model and were left out"
)
NOT_WITH_STREAM = ("sweep", "protect", "topology", "recover")


def load_for_pruning(config: Config, options: PruneOptions) -> LoadedModel:
    """The model of `config`, whole; or without its blocks where --stream says so, or it does not fit into memory.

    Raises:
        CohomError: what `load` or `open_streamed` refuses, or what cannot be done block by block.
    """
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.models.streamed import open_streamed
    from cohomcli.pruning.streamed import refuse_unstreamable

    source, wanted = resolve(config.models[0]), load_options(config)
    if not _streams(config, source, wanted):
        return load(source, wanted)
    refuse_unstreamable(options)
    if config.pruning.rounds > 1:
        raise UsageError("--rounds needs the whole model: not with --stream", "leave one of them out")
    for key in NOT_WITH_STREAM:
        if getattr(config.pruning, key):
            raise UsageError(f"--{key} needs the whole model: not with --stream", "leave one of them out")
    return open_streamed(source, wanted)


def _streams(config: Config, source: ModelSource, wanted: LoadOptions) -> bool:
    from cohomcli.models.streamed import does_not_fit

    if config.pruning.stream != "auto":
        return config.pruning.stream == "always"
    if not does_not_fit(source, wanted):
        return False
    logger.warning("%s does not fit into the free memory: it is pruned block by block", source.name)
    return True


def prune_and_save(
    run: RunFolder, parts: Parts, loaded: StreamedModel, config: Config, progress: Progress
) -> tuple[PruningResult, tuple[str, ...]]:
    """Prune into the run's model folder; the result with its perplexities, and notes.

    Raises:
        AnalysisIncomplete: activations or losses that are not finite.
    """
    from cohomcli.models.shards import ShardWriter
    from cohomcli.pruning.pattern import STRUCTURED
    from cohomcli.pruning.stream import DENSE, PRUNED
    from cohomcli.pruning.streamed import prune_streamed

    assert loaded.store is not None  # open_streamed gave it
    store, ids = loaded.store, parts.batches[0]["input_ids"][:1]
    writer = ShardWriter(run.path(FOLDER), len(store.names) + 1)
    masks: dict[str, Tensor] = {}

    def save(index: int) -> None:
        writer.write(store.tensors(index))
        if parts.options.pattern.kind not in STRUCTURED:
            masks.update(_masks(store, index))

    held = [*_held(parts), {"input_ids": ids}]
    with prune_streamed(store, parts.batches, held, parts.options, save, progress) as (result, passage):
        with passage.answering(DENSE):
            before = perplexities(parts, progress, "evaluate dense", "check the model and its texts")
        with passage.answering(PRUNED):
            after = perplexities(parts, progress, "evaluate pruned", "choose a lower sparsity")
            logits = logits_of(store.model, ids)
    writer.finish(store.model)
    result = replace(result, perplexity=tuple(paired(parts, before, after)))
    save_beside(run, parts, result, masks, config)
    if not config.pruning.verify:
        return result, (NOTE,)
    return result, (NOTE, verified(run, parts, ids, logits, progress))


def _held(parts: Parts) -> Iterator[dict[str, Tensor]]:
    """What `perplexities` calls the model with, in its order."""
    from cohomcli.training.language import inputs_of

    for _, _, blocks in parts.evaluations:
        for start in range(0, len(blocks), EVALUATED):
            yield inputs_of(blocks.batch(range(start, min(start + EVALUATED, len(blocks))), 0))


def _masks(store: BlockStore, index: int) -> Iterator[tuple[str, Any]]:
    from cohomcli.pruning.parts import anatomy_of, at

    block = store.stack.blocks[index]
    for path in anatomy_of(block).maps:
        yield f"layer_{index}.{path}", packed(at(block, path).weight)
