"""The structural objective on any model: its maps and its pages, from the model itself or from hooks on its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import UsageError
from cohomcli.models.maps import ConsecutiveMaps, consecutive_maps, writer_inputs
from cohomcli.models.pretrained import claims_causal
from cohomcli.nn.exactness import Exactness, MapPair, measure_pair
from cohomcli.nn.local import band
from cohomcli.training.data import Batch
from cohomcli.training.losses import CohomologicalTrainingObjective

WINDOWS = (4, 16)  # positions on either side that the local pages see; a quarter of the text where it is too short
PAGE_ROWS = 16  # one sequence of this many, one at least, goes through the model again under a window
EVERY = 4  # both losses come so often, in training steps, at as many times the weight: the mean over steps is the same
MEASURED = 512  # rows that the exactness measures of an evaluation use
WIDEST = 2048  # wider maps are not measured at every evaluation: their singular values cost minutes


class Structural:
    """Adds the exact-sequence and the spectral-sequence loss of a model to the task's, in every fourth step fourfold.

    A model of `cohomcli.nn` hands out its own maps and pages. Of any other transformer the maps are those between
    neighbouring blocks (`models.maps`), and the pages its last hidden states under windowed attention with the same
    weights, computed on a sixteenth of the batch.
    """

    def __init__(self, model: nn.Module, exact_weight: float, spectral_weight: float) -> None:
        """Find the parts of `model`.

        Raises:
            UsageError: a weight is negative, or the model has no maps that are known here.
        """
        self.losses = CohomologicalTrainingObjective(exact_weight, spectral_weight)
        self.own = hasattr(getattr(model, "config", None), "sequence_dim")
        self.maps: tuple[ConsecutiveMaps, ...] = () if self.own else consecutive_maps(model)
        self.inner = getattr(model, getattr(model, "base_model_prefix", ""), model)
        self.causal = not self.own and bool(claims_causal(model.config))
        if exact_weight and not self.own and not self.maps:
            raise UsageError(
                f"the consecutive maps of {type(model).__name__} are not known here", "leave --exact-weight at 0"
            )

    def forward(self, model: nn.Module, inputs: Batch, step: int | None = None) -> tuple[Any, Mapping[str, Tensor]]:
        """The model's outputs, and the weighted terms `exact` and `spectral` where their weights are not zero.

        Without a `step` they are computed at their plain weights, which is their mean over steps.
        """
        exact, spectral = self.losses.exact_loss_fn, self.losses.spectral_loss_fn
        if step is not None and step % EVERY:
            outputs = model(**inputs)
            zero = outputs.logits.new_zeros(())
            return outputs, {name: zero for name, loss in (("exact", exact), ("spectral", spectral)) if loss.weight}
        outputs, pairs, pages = self._structure(model, inputs)
        zero = outputs.logits.new_zeros(())
        terms = {}
        if exact.weight:
            terms["exact"] = exact(pairs, zero)[0]
        if spectral.weight and pages is not None:
            real = inputs["attention_mask"][: len(pages[-1])]
            terms["spectral"] = spectral(pages[:-1], pages[-1], zero, real)[0]
        often = 1 if step is None else EVERY
        return outputs, {name: often * value for name, value in terms.items()}

    def pages(self, model: nn.Module, inputs: Batch) -> Sequence[Tensor]:
        """The pages alone, narrow to wide."""
        found = self._structure(model, inputs)[2]
        return found if found is not None else ()

    def _structure(self, model: nn.Module, inputs: Batch) -> tuple[Any, Sequence[MapPair], Sequence[Tensor] | None]:
        """The outputs, the pairs of maps and the pages; what a weight of zero makes needless is left out."""
        if self.own:
            outputs = model(**inputs, return_structure=True)
            return outputs, outputs.map_pairs, outputs.pages
        exact, spectral = self.losses.exact_loss_fn.weight, self.losses.spectral_loss_fn.weight
        with writer_inputs(self.maps if exact else ()) as seen, _LastStates(self.inner) as states:
            outputs = model(**inputs)
            final = states[-1]
        pairs = [maps.pair(seen[maps.name]) for maps in self.maps] if exact else []
        return outputs, pairs, self._pages(inputs, final) if spectral else None

    def _pages(self, inputs: Batch, final: Tensor) -> list[Tensor]:
        """Last hidden states (b, T, d) of the first b rows under growing windows, the unlimited ones last."""
        ids, real = inputs["input_ids"], inputs["attention_mask"]
        b, T = max(1, len(ids) // PAGE_ROWS), ids.shape[1]
        itself = torch.eye(T, dtype=torch.bool, device=ids.device)  # padding sees itself: no row of scores is empty
        windows = [w for w in WINDOWS if 2 * w <= T] or [max(1, T // 4)]
        near = torch.stack([band(T, window, ids.device) for window in windows])
        near = near.tril() if self.causal else near
        allowed = (near[:, None, None] & real[:b, None, None].bool()) | itself  # (windows, b, 1, T, T)
        mask = torch.zeros(allowed.shape, dtype=final.dtype, device=ids.device)
        mask = mask.masked_fill(~allowed, torch.finfo(final.dtype).min).flatten(0, 1)
        states = self.inner(input_ids=ids[:b].repeat(len(windows), 1), attention_mask=mask)[0]
        return [*states.unflatten(0, (len(windows), b)).unbind(), final[:b]]


class _LastStates:
    """Inside, every forward pass of `module` leaves its last hidden states in the list."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.states: list[Tensor] = []

    def __enter__(self) -> list[Tensor]:
        self.handle = self.module.register_forward_hook(lambda module, args, output: self.states.append(output[0]))
        return self.states

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


@torch.no_grad()
def exactness_of(model: nn.Module, inputs: Batch) -> dict[str, float]:
    """Means over the pairs of consecutive maps on one batch: the defects, free rank and alignment of `nn.exactness`.

    `free_share` is the free rank over the rank of the image. Empty where no map is known or all are too wide.
    """
    if hasattr(getattr(model, "config", None), "sequence_dim"):
        pairs = list(model(**inputs, return_structure=True).map_pairs)
    else:
        maps = consecutive_maps(model)
        with writer_inputs(maps, MEASURED) as seen:
            model(**inputs)
        pairs = [each.pair(seen[each.name]) for each in maps]
    found = [measure_pair(pair) for pair in pairs if max(*pair.first.shape, *pair.second.shape) <= WIDEST]
    return _means(found) if found else {}


def _means(found: list[Exactness]) -> dict[str, float]:
    n = len(found)
    return {
        "complex_defect": sum(one.complex_defect for one in found) / n,
        "homology_defect": sum(one.homology_defect for one in found) / n,
        "free_share": sum(one.free_rank / max(one.rank_image, 1) for one in found) / n,
        "read_alignment": sum(one.read_alignment for one in found) / n,
    }
