"""`cohom prune --topology`: persistence of every layer's states on held-out texts, dense against pruned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cohomcli.config import Config
from cohomcli.data.spec import DatasetSpec, TextSample
from cohomcli.jobs.entry import activation_options, topology_options
from cohomcli.progress import Progress

if TYPE_CHECKING:
    from cohomcli.models.spec import Activations, LoadedModel
    from cohomcli.pruning.shape import LayerChange, TopologyChange
    from cohomcli.topology.results import LayerTopology, TopologyResult

TEXTS = 200  # at most


@dataclass(frozen=True)
class Shape:
    """A model's states on some texts, by layer, and their topology."""

    sample: TextSample
    activations: Activations
    topology: TopologyResult


def shape_of(loaded: LoadedModel, spec: DatasetSpec, config: Config, progress: Progress) -> Shape | None:
    """The shape of `loaded` on the first texts of `spec`, where --topology asks for it.

    Raises:
        CohomError: texts or states that cannot be analysed.
    """
    if not config.pruning.topology:
        return None
    from cohomcli.data.sample import load_all_texts
    from cohomcli.models.activations import collect
    from cohomcli.topology.analysis import analyze_layers

    sample = load_all_texts(spec, TEXTS, config.compute.seed)
    options = replace(activation_options(config), layers=(), sites=("block",), perplexity=False)
    activations = collect(loaded, sample.texts, options, progress)
    return Shape(sample, activations, analyze_layers(activations.layers, topology_options(config, 1), progress))


def change_of(dense: Shape | None, pruned: Shape | None, gone: Sequence[int]) -> TopologyChange | None:
    """What became of the layers; `gone` are the numbers of blocks that the pruned model no longer has."""
    from cohomcli.pruning.shape import TopologyChange

    if dense is None or pruned is None:
        return None
    blocks = [name for name in dense.activations.layers if name.startswith("layer_")]
    kept = [name for at, name in enumerate(blocks) if at not in gone]
    names = {f"layer_{at}": name for at, name in enumerate(kept)}  # as the dense model calls them
    before = {layer.name: layer for layer in dense.topology.layers}
    return TopologyChange(
        dataset=dense.sample.name,
        n_texts=len(dense.sample.texts),
        expansion=(dense.topology.expansion.scale_free, pruned.topology.expansion.scale_free),
        layers=tuple(
            _changed(before[names.get(layer.name, layer.name)], layer, dense.activations, pruned.activations)
            for layer in pruned.topology.layers
        ),
    )


def _changed(old: LayerTopology, new: LayerTopology, dense: Activations, pruned: Activations) -> LayerChange:
    from cohomcli.pruning.shape import LayerChange
    from cohomcli.topology.diagramdrift import diagram_drift
    from cohomcli.topology.drift import DEFAULT, representation_drift
    from cohomcli.topology.measures import MEASURES

    drift = representation_drift(dense.layers[old.name], pruned.layers[new.name], MEASURES.get(DEFAULT))
    return LayerChange(
        name=old.name,
        h0=(_total(old, 0), _total(new, 0)),
        h1=(_total(old, 1), _total(new, 1)),
        scale=(old.scale, new.scale),
        drift=_known(drift),
        diagram_drift=_known(diagram_drift(old, new)),
    )


def _total(layer: LayerTopology, dimension: int) -> float:
    return sum(one.total_persistence for one in layer.summaries if one.dimension == dimension)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
