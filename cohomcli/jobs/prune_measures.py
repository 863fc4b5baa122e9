"""What `cohom prune` measures before and after: perplexities, and how exact consecutive maps are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cohomcli.config import Config
from cohomcli.errors import AnalysisIncomplete
from cohomcli.jobs.prune_parts import EVALUATED, Parts, stack_of
from cohomcli.progress import Progress

if TYPE_CHECKING:
    from cohomcli.models.pairs import PairReport
    from cohomcli.pruning.results import Perplexity

MEASURED = 2048  # calibration tokens that the exactness report is measured on


def perplexities(parts: Parts, progress: Progress, step: str, hint: str) -> list[float]:
    """exp of the mean nats per predicted token on every evaluation set; masked models predict hidden tokens."""
    from cohomcli.training.loop import evaluate

    model, task = parts.loaded.model, parts.loaded.info.lm_head or "causal"
    found = []
    progress(step, 0, len(parts.evaluations))
    for done, (name, _, blocks) in enumerate(parts.evaluations, start=1):
        loss = evaluate(model, blocks, task, EVALUATED, next(model.parameters()).device)
        if not loss < 700:
            raise AnalysisIncomplete(f"the loss on {name} is {loss:.4g} nats per token", hint)
        found.append(math.exp(loss))
        progress(step, done, len(parts.evaluations))
    return found


def paired(parts: Parts, before: list[float], after: list[float]) -> Iterator[Perplexity]:
    """Both perplexities of every evaluation set."""
    from cohomcli.pruning.results import Perplexity
    from cohomcli.training.language import targets_in

    for (name, domain, blocks), old, new in zip(parts.evaluations, before, after, strict=True):
        count = targets_in(blocks.batch(range(len(blocks)), 0)["labels"])
        yield Perplexity(name, old, new, count, domain)


def exactness(parts: Parts, config: Config, progress: Progress) -> tuple[PairReport, ...]:
    """The exactness of consecutive maps on the first calibration batches; empty where --exactness is off."""
    from cohomcli.models.exactness import exactness_report

    if not config.pruning.exactness:
        return ()
    per_batch = parts.batches[0]["input_ids"].numel()
    batches = parts.batches[: max(1, MEASURED // per_batch)]
    return exactness_report(parts.loaded.model, stack_of(parts.loaded.model), batches, progress=progress)
