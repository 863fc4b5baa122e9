"""The representation part of an entry: similarity between layers, tracking over them, and attention graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cohomcli.config import Config
from cohomcli.data.spec import TextSample
from cohomcli.models.spec import LoadedModel
from cohomcli.progress import Progress
from cohomcli.results import Claim

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohomcli.topology.figures import AttentionTopology, RepresentationResult
    from cohomcli.topology.results import TopologyResult

MOST_TOKENS = 128
"""Tokens of a text whose attention graph is analysed, the length the method was published with."""


def attention_of(
    loaded: LoadedModel, sample: TextSample, config: Config, progress: Progress
) -> AttentionTopology | None:
    """Attention graphs of the first texts of the sample, as many as asked for; None when none are.

    Raises:
        InputRefused: the architecture hands out no attention weights.
    """
    wanted = config.topology.attention_texts
    if wanted == 0:
        return None
    from cohomcli.models.attentions import attention_maps
    from cohomcli.topology.attention import attention_topology

    texts = sample.texts[:wanted]
    maps = attention_maps(loaded, texts, min(config.activations.max_length, MOST_TOKENS))

    def counted() -> Any:
        for at, text in enumerate(maps):
            progress("attention", at, len(texts))
            yield text
        progress("attention", len(texts), len(texts))

    return attention_topology(counted())


def representation_of(
    layers: Mapping[str, NDArray[Any]], attention: AttentionTopology | None, config: Config, progress: Progress
) -> RepresentationResult | None:
    """What the configuration asks for beyond each layer's own topology; None when there is nothing."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    from cohomcli.models.memory import available_bytes
    from cohomcli.topology.figures import RepresentationResult
    from cohomcli.topology.representation import RepresentationOptions, analyze_representation

    options = RepresentationOptions(
        similarity=tuple(config.topology.similarity),
        neighbours=config.topology.track_neighbours,
        seed=config.compute.seed,
        available_bytes=available_bytes(),
    )
    with threadpool_limits(limits=1, user_api="blas"):  # sums do not then depend on the number of cores
        result = replace(analyze_representation(layers, options, progress), attention=attention)
    return result if result != RepresentationResult() else None


def representation_claims(
    model: str, topology: TopologyResult, result: RepresentationResult | None
) -> tuple[Claim, ...]:
    """How the figures beyond homology are known."""
    claims = []
    if any(layer.geometry is not None for layer in topology.layers):
        claims.append(Claim(f"intrinsic dimensions of the layers of {model} on the named texts", "estimated"))
        claims.append(Claim(f"hubness, mean cosine and ranks of the layers of {model} on the named texts", "measured"))
    if result is not None and result.similarity:
        names = ", ".join(matrix.measure for matrix in result.similarity)
        claims.append(Claim(f"similarity of the layers of {model} on the named texts by {names}", "measured"))
    if result is not None and result.tracking is not None:
        claims.append(Claim(f"neighbour graphs of {model} tracked over its layers on the named texts", "measured"))
    if result is not None and result.attention is not None:
        n = result.attention.n_texts
        claims.append(Claim(f"attention graphs of every head of {model} on {n} of the named texts", "measured"))
    return tuple(claims)
