"""What `cohom prune --pattern rank:` gives besides plain matrices: the two thin maps of each, saved and measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cohomcli.errors import AnalysisIncomplete
from cohomcli.jobs.prune_parts import Parts, stack_of
from cohomcli.jobs.prune_save import FOLDER
from cohomcli.jobs.reload import logits_of

if TYPE_CHECKING:
    from cohomcli.pruning.results import PruningResult
    from cohomcli.pruning.truncate import Factors
    from cohomcli.runs.folder import RunFolder

FACTORED_PREFILL = "factored_prefill_cpu_seconds"  # in manifest.json: of 512 tokens
ROUNDING = 1e-3  # largest difference of logits, over their size, that float32 can explain


def with_factors(run: RunFolder, parts: Parts, result: PruningResult, factors: dict[str, Factors]) -> PruningResult:
    """Save `factors` beside the weights and measure the model that has them in the place of its maps.

    Raises:
        AnalysisIncomplete: its logits are not the dense model's up to rounding.
    """
    from cohomcli.models.prefill import prefill_seconds
    from cohomcli.pruning.lowrank import FACTORS_FILE, factored, save_factors
    from cohomcli.pruning.results import Factored

    if not factors:
        return result
    save_factors(run.path(f"{FOLDER}/{FACTORS_FILE}"), factors)
    model, ids = parts.loaded.model, parts.batches[0]["input_ids"][:1]
    dense = logits_of(model, ids)
    with factored(stack_of(model), factors, trained=False):
        largest = float((logits_of(model, ids) - dense).abs().max())
        n_parameters = sum(p.numel() for p in model.parameters())
        run.manifest[FACTORED_PREFILL] = round(prefill_seconds(model), 4)
    if largest > ROUNDING * max(1.0, float(dense.abs().max())):
        raise AnalysisIncomplete(f"the logits of the factored model differ by {largest:.3g} from the dense one's")
    return replace(result, factored=Factored(n_parameters, largest))


def loads_again(run: RunFolder, parts: Parts) -> str:
    """Load the saved factors and compare logits with the saved dense model's; the note for --verify."""
    from cohomcli.pruning.lowrank import load_factored

    ids = parts.batches[0]["input_ids"][:1]
    difference = logits_of(load_factored(run.stage / FOLDER), ids) - logits_of(parts.loaded.model, ids)
    largest = float(difference.abs().max())
    return f"the factors were loaded from the saved folder; their logits differ by at most {largest:.2g}"
