"""The job behind `inspect --exactness`: what every block's MLP writes on built-in or given texts, and who reads it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from cohomcli.config import Config
from cohomcli.errors import InputRefused
from cohomcli.jobs.analyze import dataset_spec
from cohomcli.jobs.entry import load_options
from cohomcli.progress import Progress, silent

TOKENS, BATCH = 2048, 1024


def exactness(target: str, config: Config, progress: Progress = silent) -> dict[str, Any]:
    """The report of the model `target` on texts of `config.datasets[0]` (the calibration split of the built-in ones).

    Raises:
        CohomError: the model or the texts are refused, or the architecture's maps are not known.
    """
    from cohomcli.data.sample import load_all_texts
    from cohomcli.models.exactness import exactness_report
    from cohomcli.models.layout import find_stacks
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.training.data import text_blocks

    loaded = load(resolve(target), load_options(config))
    spec = dataset_spec(config, config.datasets[0])
    sample = load_all_texts(replace(spec, split=spec.split or "calibration"), 0, config.compute.seed)
    length = min(config.pruning.block_size, loaded.info.max_positions or config.pruning.block_size)
    task = loaded.info.lm_head or "causal"
    ids = text_blocks(loaded.tokenizer, sample.texts, length, task, loaded.info.vocab_size, 0).ids[: TOKENS // length]
    step = max(1, BATCH // length)
    parts = [ids[at : at + step] for at in range(0, len(ids), step)]
    batches = [{"input_ids": part, "attention_mask": part.new_ones(part.shape)} for part in parts]
    found = exactness_report(loaded.model, find_stacks(loaded.model).stacks[0], batches, progress=progress)
    if not found:
        raise InputRefused(
            f"the maps between blocks of {type(loaded.model).__name__} are not known", "see docs/prune.md for families"
        )
    return {"dataset": sample.source, "n_tokens": ids.numel(), "energy": 0.01, "pairs": [asdict(one) for one in found]}
