"""The model folder of `cohom prune`: weights, config and tokenizer for stock classes, masks and the recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cohomcli import __version__
from cohomcli.config import Config
from cohomcli.errors import AnalysisIncomplete
from cohomcli.jobs.prune_parts import Parts, stack_of
from cohomcli.jobs.reload import reload_elsewhere
from cohomcli.permissions import open_up
from cohomcli.progress import Progress
from cohomcli.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from cohomcli.pruning.results import PruningResult

FOLDER, RECIPE, MASKS = "model", "cohom_prune.json", "masks.safetensors"


def save(run: RunFolder, parts: Parts, result: PruningResult, config: Config) -> None:
    """Write `model/`: weights, config and tokenizer for stock classes, the masks, and what is needed to repeat it."""
    from cohomcli.models.quiet import quiet
    from cohomcli.pruning.pattern import STRUCTURED

    folder = run.path(FOLDER)
    with quiet():
        model: Any = parts.loaded.model
        model.save_pretrained(folder)
    open_up(folder.glob("*.safetensors"))
    found = [] if parts.options.pattern.kind in STRUCTURED else pruned_weights(parts, result)
    save_beside(run, parts, result, {name: packed(weight) for name, weight in found}, config)


def save_beside(run: RunFolder, parts: Parts, result: PruningResult, masks: dict[str, Tensor], config: Config) -> None:
    """What lies in `model/` beside the weights: the tokenizer, the masks if there are, and the recipe."""
    from safetensors.torch import save_file

    from cohomcli.models.quiet import quiet

    folder = run.path(FOLDER)
    with quiet():
        parts.loaded.tokenizer.save_pretrained(folder)
    if masks:
        save_file(masks, folder / MASKS, metadata={"packing": "numpy.packbits of weight != 0, row by row"})
        open_up([folder / MASKS])
    recipe = {
        "schema": "cohom.prune/1",
        "version": __version__,
        "parent": {"location": parts.loaded.info.location, "weights_sha256": parts.loaded.info.weights_sha256},
        "calibration": {"source": parts.calibration.source, "texts_sha256": parts.calibration.sha256},
        "options": config.pruning.model_dump(mode="json"),
        "seed": parts.options.seed,
        "result": {key: value for key, value in asdict(result).items() if key != "seconds"},
    }
    run.write(f"{FOLDER}/{RECIPE}", json.dumps(recipe, indent=1, sort_keys=True, allow_nan=False) + "\n")


def pruned_weights(parts: Parts, result: PruningResult) -> Iterator[tuple[str, Any]]:
    """Name and weight, as it is stored, of every map that was pruned."""
    from cohomcli.pruning.parts import at

    blocks = stack_of(parts.loaded.model).blocks
    for one in result.maps:
        layer, _, path = one.name.partition(".")
        yield one.name, at(blocks[int(layer.removeprefix("layer_"))], path).weight


def packed(weight: Tensor) -> Tensor:
    """One bit a weight (out, in), row by row: whether it is not zero."""
    import numpy as np
    import torch

    return torch.from_numpy(np.packbits((weight.detach() != 0).numpy(), axis=1))


def verified(run: RunFolder, parts: Parts, ids: Tensor, logits: Tensor, progress: Progress) -> str:
    """Load the saved folder by stock classes in a fresh process and compare its logits on `ids` (1, T).

    Raises:
        AnalysisIncomplete: they differ, or it does not load.
    """
    progress("verify", 0, 1)
    largest = reload_elsewhere(run.stage / FOLDER, ids, logits, str(parts.loaded.info.lm_head))
    progress("verify", 1, 1)
    if largest > 0:
        raise AnalysisIncomplete(f"the saved model's logits differ by {largest:.3g} after reloading")
    return "the saved folder was loaded by transformers in a process without cohom; its logits are equal bit for bit"
