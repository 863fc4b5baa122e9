"""What `cohom prune` works on: options, texts packed into blocks, and the memory that they take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config
from cohomcli.data.spec import DatasetSpec, TextSample
from cohomcli.errors import InputRefused, UsageError
from cohomcli.jobs.analyze import dataset_spec

if TYPE_CHECKING:
    from torch import Tensor

    from cohomcli.models.layout import Stack
    from cohomcli.models.spec import LoadedModel
    from cohomcli.pruning.options import PruneOptions

PER_BATCH = 2048  # calibration tokens that go through a block together
EVALUATED = 4  # sequences of a batch of an evaluation


@dataclass(frozen=True)
class Parts:
    """What is known before the first map is pruned."""

    loaded: LoadedModel
    options: PruneOptions
    calibration: TextSample
    batches: list[dict[str, Tensor]]
    evaluations: list[tuple[str, str, Any]]  # name, domain, blocks
    blocks: Any  # all texts of the calibration split, packed
    memory: int  # bytes that pruning and measuring take beside the model


def memory_beside(model: Any, stack: Stack, rows: int, options: PruneOptions, config: Config) -> int:
    """Bytes beside the loaded model at the peak of the command, which calibrates on so many `rows` at a time; pruning,
    evaluation and report follow each other.
    """
    from cohomcli.pruning.forecast import evaluation_bytes, exactness_bytes, forecast_bytes

    wanted = config.pruning
    needs = [
        forecast_bytes(stack, rows * wanted.block_size, options),
        evaluation_bytes(model.config, EVALUATED, wanted.block_size),
        exactness_bytes(model.config, len(stack.blocks), rows, wanted.block_size) if wanted.exactness else 0,
    ]
    return max(needs) + (held_bytes(model) if wanted.sweep else 0)


def held_bytes(model: Any) -> int:
    """Bytes of the weights that are in memory."""
    return sum(int(p.nbytes) for p in model.parameters() if not p.is_meta)


def options_of(config: Config) -> PruneOptions:
    """The engine's options, before --protect.

    Raises:
        UsageError: the pattern is none, or its sparsity is outside [0, 1).
    """
    from cohomcli.pruning.options import PruneOptions
    from cohomcli.pruning.pattern import parse_pattern

    wanted = config.pruning
    shrink = None if wanted.shrink == "auto" else float(wanted.shrink)
    return PruneOptions(
        wanted.method, parse_pattern(wanted.pattern), shrink, config.compute.seed, allocation=wanted.allocation
    )


def _calibration_spec(config: Config) -> DatasetSpec:
    spec = dataset_spec(config, config.pruning.calibration or config.datasets[0])
    return replace(spec, split=spec.split or "calibration")


def heldout(config: Config) -> DatasetSpec:
    """The part of the calibration's data set that is not calibrated on."""
    return replace(_calibration_spec(config), split="heldout")


def calibration_texts(loaded: LoadedModel, config: Config) -> tuple[TextSample, Any]:
    """All texts to calibrate on, and packed into blocks."""
    return _blocks(loaded, _calibration_spec(config), config)


def _blocks(loaded: LoadedModel, spec: DatasetSpec, config: Config) -> tuple[TextSample, Any]:
    """All texts of a data set, and packed into blocks."""
    from cohomcli.data.sample import load_all_texts
    from cohomcli.training.data import text_blocks

    length = config.pruning.block_size
    if loaded.info.max_positions is not None and length > loaded.info.max_positions:
        raise UsageError(f"--block-size {length} is more than the {loaded.info.max_positions} positions of the model")
    task = loaded.info.lm_head or "causal"
    sample = load_all_texts(spec, 0, config.compute.seed)
    return sample, text_blocks(
        loaded.tokenizer, sample.texts, length, task, loaded.info.vocab_size, config.compute.seed
    )


def evaluation_sets(loaded: LoadedModel, config: Config) -> Iterator[tuple[str, str, Any]]:
    """The held-out part of the calibration data (in domain), and every data set of --eval (out of domain)."""
    others = [("out", dataset_spec(config, reference)) for reference in config.pruning.evaluate]
    wanted = [("in", heldout(config)), *others]
    count = max(1, config.pruning.evaluation_tokens // config.pruning.block_size)
    for domain, each in wanted:
        sample, blocks = _blocks(loaded, each, config)
        yield sample.name, domain, replace(blocks, ids=blocks.ids[:count], maskable=blocks.maskable[:count])


def batches_of(blocks: Any, config: Config) -> list[dict[str, Tensor]]:
    """The first --calibration-tokens of `blocks`, in batches of equal size, two at least.

    Raises:
        InputRefused: they are fewer than two blocks.
    """
    wanted = config.pruning
    ids = blocks.ids[: wanted.calibration_tokens // wanted.block_size]
    if len(ids) < 2:
        raise InputRefused("the calibration fills fewer than two blocks", "give more text, or a shorter --block-size")
    rows = min(max(1, PER_BATCH // wanted.block_size), len(ids) // 2)
    return [_inputs(ids[at : at + rows]) for at in range(0, len(ids) - rows + 1, rows)]


def _inputs(ids: Tensor) -> dict[str, Tensor]:
    import torch

    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def stack_of(model: Any) -> Stack:
    """The only stack of a model."""
    from cohomcli.models.layout import find_stacks

    return find_stacks(model).stacks[0]
