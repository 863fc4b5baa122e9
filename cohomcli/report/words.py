"""The report's sentences: what is seen in one entry, in plain words, and what it does not mean.

Every sentence is plain text with harmless names (`names.clean`); the renderers escape it. A sentence is said only when
it is true of the entry at hand: one layer, no embedding, no H1, coinciding points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cohomcli.report.depth import depth_of
from cohomcli.report.evidence import count_is_no_evidence, sample_sentence, significance_sentence
from cohomcli.report.layers import dimensions_of, embedding_of, summary_of
from cohomcli.report.names import clean, count, listing, number, percent, ratio
from cohomcli.results import Entry
from cohomcli.topology.results import LayerTopology, TopologyResult

SCALING_METRICS = {"euclidean", "l2", "manhattan", "cityblock", "l1", "chebyshev", "minkowski"}
"""Metrics under which c times the activations are c times as far apart; cosine and correlation are not among them."""

_POINT = {
    "last": "the vector of its last token",
    "cls": "the vector of its first token",
    "mean": "the mean of its token vectors",
}


def seen(entry: Entry) -> list[str]:
    """What the entry shows, sentence by sentence."""
    topology = entry.topology
    if topology is None or not topology.layers:
        return [sentence for sentence in (_metrics(entry),) if sentence]
    sentences = [
        _setting(entry, topology.layers),
        f"{_spacing(topology)} {significance_sentence(topology.layers, 0)}".strip(),
        _factors(topology),
        *_classes(topology.layers),
        _censored(topology.layers),
        _coinciding(topology.layers),
        _metrics(entry),
    ]
    return [sentence for sentence in sentences if sentence]


def _setting(entry: Entry, layers: Sequence[LayerTopology]) -> str:
    split = f" ({clean(entry.sample.split, 40)})" if entry.sample and entry.sample.split else ""
    texts = f"{count(layers[0].n_points, 'text')} of {clean(entry.dataset, 60)}{split}"
    point = _POINT.get(
        entry.pooling, f"its tokens pooled by {clean(entry.pooling, 20)}" if entry.pooling else "a vector"
    )
    return (
        f"{clean(entry.model, 60)} read {texts}. In every layer each text is one point: {point}. {_inventory(layers)}"
    )


def _inventory(layers: Sequence[LayerTopology]) -> str:
    """Which kinds of layers were analysed."""
    if len(layers) == 1:
        return f"One layer was analysed: {clean(layers[0].name, 40)}."
    depth = depth_of(layers)
    of_role = {stop: [s for s in depth.stops if s.role == stop] for stop in ("embedding", "block", "norm", "other")}
    sites = {site: sum(len(t.layers) for t in depth.tracks if t.site == site) for site in ("attention", "mlp")}
    blocks = len(layers) - sum(sites.values()) - sum(len(of_role[role]) for role in ("embedding", "norm", "other"))
    parts = [
        count(len(of_role["embedding"]), "embedding") if len(of_role["embedding"]) > 1 else "the embedding",
        count(blocks, "block"),
        count(sites["attention"], "attention output"),
        count(sites["mlp"], "MLP output"),
        count(len(of_role["norm"]), "final norm") if len(of_role["norm"]) > 1 else "the final norm",
        count(len(of_role["other"]), "other layer"),
    ]
    sizes = [len(of_role["embedding"]), blocks, *sites.values(), len(of_role["norm"]), len(of_role["other"])]
    named = [part for part, size in zip(parts, sizes, strict=True) if size]
    return f"{len(layers)} layers were analysed: {listing(named)}." if len(named) > 1 else f"{named[0]} were analysed."


def _spacing(topology: TopologyResult) -> str:
    """H0 over the layers and its expansion ratio."""
    layers, expansion = topology.layers, topology.expansion
    first = summary_of(layers[0], 0)
    if first is None:
        return ""
    if layers[0].n_points == 1:
        return "One point has no shape: there is nothing to measure."
    if len(layers) == 1:
        return (
            f"H0, the spacing of the points: total persistence {number(first.total_persistence)}, "
            f"{number(first.total_over_scale)} times the mean pairwise distance."
        )
    low, high = _extremes(layers, lambda layer: _total(layer, 0, free=False))
    span = (
        f"H0, the spacing of the points: total persistence lies between {number(_total(low, 0, free=False))} "
        f"({clean(low.name, 40)}) and {number(_total(high, 0, free=False))} ({clean(high.name, 40)})."
    )
    if expansion.raw is None:
        reason = f": {clean(expansion.reason).rstrip('.')}" if expansion.reason else ""
        return f"{span} No expansion ratio is given{reason}."
    peak = clean(expansion.peak_raw or "", 40)
    raw = f"The largest total of a block ({peak}) is {ratio(expansion.raw)} the embedding's"
    if expansion.scale_free is None:
        return f"{span} {raw} (raw expansion); a scale-free ratio could not be formed."
    return (
        f"{span} {raw} (raw expansion). After division by each layer's scale the largest "
        f"({clean(expansion.peak_scale_free or '', 40)}) is {ratio(expansion.scale_free)} the embedding's "
        "(scale-free expansion)."
    )


def _factors(topology: TopologyResult) -> str:
    """The raw expansion as the product of its two causes, which is exact: total = scale x (total / scale)."""
    start = embedding_of(topology.layers)
    peak = next((layer for layer in topology.layers if layer.name == topology.expansion.peak_raw), None)
    if topology.expansion.raw is None or start is None or peak is None or peak is start:
        return ""
    before, after = summary_of(start, 0), summary_of(peak, 0)
    if before is None or after is None:
        return ""
    product = (
        f"The raw expansion is the product of two changes from the embedding to {clean(peak.name, 40)}: the scale "
        f"(mean pairwise distance) goes from {number(start.scale)} to {number(peak.scale)}, and the scale-free total "
        f"from {number(before.total_over_scale)} to {number(after.total_over_scale)}."
    )
    if peak.metric not in SCALING_METRICS:
        return product
    return (
        f"{product} The first is size; the mean norm of the activations goes from {number(start.mean_norm)} to "
        f"{number(peak.mean_norm)}. Only the second is about shape."
    )


def _classes(layers: Sequence[LayerTopology]) -> list[str]:
    """The bars of H1 and above."""
    higher = [dimension for dimension in dimensions_of(layers) if dimension > 0]
    if layers[0].n_points == 1:
        return []
    if not higher:
        return ["Only H0 was computed, so nothing is said about loops (H1)."]
    return [
        f"{_classes_in(layers, dimension)} {significance_sentence(layers, dimension)}".strip() for dimension in higher
    ]


def _classes_in(layers: Sequence[LayerTopology], dimension: int) -> str:
    what = {1: "H1, loops", 2: "H2, voids"}.get(dimension, f"H{dimension}")
    low, high = _extremes(layers, lambda layer: _count(layer, dimension))
    longest = _extremes(layers, lambda layer: _longest(layer, dimension))[1]
    fewest, most = int(_count(low, dimension)), int(_count(high, dimension))
    if most == 0:
        where = "no layer has" if len(layers) > 1 else "the layer has no"
        return f"{what}: {where} {'a ' if len(layers) > 1 else ''}finite bar."
    if len(layers) == 1:
        numbers = f"{count(most, 'finite bar')}"
    elif fewest == most:
        numbers = f"every layer has {count(most, 'finite bar')}"
    else:
        numbers = (
            f"between {fewest:,} ({clean(low.name, 40)}) and {most:,} ({clean(high.name, 40)}) finite bars per layer"
        )
    where = f" ({clean(longest.name, 40)})" if len(layers) > 1 else ""
    return (
        f"{what}: {numbers}; the longest lasts {number(_longest(longest, dimension), 3)} of its layer's scale{where}."
    )


def _censored(layers: Sequence[LayerTopology]) -> str:
    """Classes whose death was not seen because the filtration ended first."""
    alive = {k: sum(s.censored for layer in layers if (s := summary_of(layer, k))) for k in dimensions_of(layers)}
    parts = [f"{count(n, 'class', 'classes')} of H{k}" for k, n in alive.items() if n]
    if not parts:
        return ""
    return (
        f"Still alive where the filtration ended: {listing(parts)}, over all layers. Their lifetimes are unknown, may "
        "be the longest of all, and are in no figure."
    )


def _coinciding(layers: Sequence[LayerTopology]) -> str:
    some = [layer for layer in layers if 1 < layer.n_distinct < layer.n_points]
    one = [layer for layer in layers if layer.n_distinct == 1 < layer.n_points]
    parts = []
    if one:
        parts.append(f"All points coincide at {listing(clean(layer.name, 40) for layer in one)}: no shape to measure.")
    if some:
        each = listing(
            f"{clean(layer.name, 40)} ({layer.n_distinct:,} distinct of {layer.n_points:,})" for layer in some
        )
        parts.append(f"Some points coincide at {each}; coinciding points add no bars.")
    return " ".join(parts)


def _metrics(entry: Entry) -> str:
    metrics = entry.metrics
    if metrics is None:
        return f"No perplexity is given: {clean(entry.metrics_reason).rstrip('.')}." if entry.metrics_reason else ""
    name = {"perplexity": "Perplexity", "pseudo-perplexity": "Pseudo-perplexity"}[metrics.kind]
    error = f" ± {number(metrics.standard_error, 2)} standard error" if metrics.standard_error is not None else ""
    hit = "next token" if metrics.kind == "perplexity" else "masked token"
    return (
        f"{name} on these texts: {number(metrics.perplexity)} ({number(metrics.loss)}{error} nats per token over "
        f"{count(metrics.n_predictions, 'prediction')}); the {hit} is the model's first guess "
        f"{percent(metrics.accuracy)} of the time."
    )


def limits(entry: Entry) -> list[str]:
    """What the entry's figures do not mean, said only where it applies."""
    topology = entry.topology
    if topology is None or not topology.layers:
        return []
    layers = topology.layers
    sentences = [
        _no_null_model(layers),
        _not_clusters(layers),
        _not_shape(layers),
        _after_norm(layers),
        _of_pooling(entry),
        _of_projection(layers),
        _of_sample(layers),
        _of_perplexity(entry),
    ]
    return [sentence for sentence in sentences if sentence]


def _no_null_model(layers: Sequence[LayerTopology]) -> str:
    if 1 not in dimensions_of(layers):
        return ""
    n = layers[0].n_points
    if not any(_count(layer, 1) for layer in layers):
        return f"That no H1 bar was seen in {count(n, 'point')} does not prove that the representation has no loop."
    return count_is_no_evidence(layers)


def _not_clusters(layers: Sequence[LayerTopology]) -> str:
    if any(diagram.dimension == 0 and len(diagram.censored) for layer in layers for diagram in layer.diagrams):
        return ""
    return (
        "H0 total persistence is the length of the shortest tree that connects the points. It measures how far apart "
        "they lie, not how many clusters they form; the number of H0 bars only counts distinct points."
    )


def _not_shape(layers: Sequence[LayerTopology]) -> str:
    if any(layer.metric not in SCALING_METRICS for layer in layers):
        return ""
    return (
        "Raw totals and lifetimes are in the units of the activations: ten times larger activations give ten times "
        "larger figures and the same shape. Compare layers and models by the scale-free figures."
    )


def _after_norm(layers: Sequence[LayerTopology]) -> str:
    if len(layers) < 2 or not layers[-1].name.endswith("final_norm"):
        return ""
    return (
        "The final norm rescales every vector, so the change of the raw figures in that step is no work of the blocks."
    )


def _of_pooling(entry: Entry) -> str:
    cut = (
        f" {count(entry.n_truncated, 'text was', 'texts were')} cut at the length limit: there it is the last one kept."
        if entry.n_truncated
        else ""
    )
    if entry.pooling == "last":
        return (
            "With last-token pooling the embedding layer knows only which token a text ends with (and, where positions "
            f"are added to it, how long the text is): texts that end alike coincide there or lie close.{cut}"
        )
    if entry.pooling == "cls":
        return (
            "With [CLS] pooling the embedding layer knows only the first token of a text. Where every text begins with "
            "the same token, all points coincide there and a ratio to the embedding says nothing."
        )
    if entry.pooling == "mean":
        return (
            "Mean pooling averages over tokens: long texts come to lie nearer to the common mean than short ones, so "
            "distances also reflect length."
        )
    return ""


def _of_projection(layers: Sequence[LayerTopology]) -> str:
    projected = [layer for layer in layers if layer.pca_dim < layer.ambient_dim]
    if not projected:
        return ""
    low, high = _extremes(projected, lambda layer: layer.explained_variance)
    kept = percent(low.explained_variance)
    if kept != percent(high.explained_variance):
        kept = f"between {kept} ({clean(low.name, 40)}) and {percent(high.explained_variance)} ({clean(high.name, 40)})"
    return (
        "Distances were taken after a projection of each layer on its own first principal components, which keep "
        f"{kept} of its variance. What they drop is not seen."
    )


def _of_sample(layers: Sequence[LayerTopology]) -> str:
    these = f"these {layers[0].n_points:,} texts" if layers[0].n_points > 1 else "this one text"
    text = sample_sentence(these, layers)
    if len(layers) > 1:
        text += " The layers see the same texts, so they are not independent samples of anything."
    return text


def _of_perplexity(entry: Entry) -> str:
    if entry.metrics is None:
        return ""
    if entry.metrics.kind == "pseudo-perplexity":
        return (
            "Pseudo-perplexity hides one token at a time and shows the rest (Salazar et al. 2020): it is no perplexity "
            "and not comparable with one."
        )
    return "Perplexity is per token: models with different tokenizers cannot be ranked by it."


def _extremes(
    layers: Sequence[LayerTopology], value: Callable[[LayerTopology], float]
) -> tuple[LayerTopology, LayerTopology]:
    """The first layers with the smallest and the largest `value`."""
    return min(layers, key=value), max(layers, key=value)


def _total(layer: LayerTopology, dimension: int, free: bool) -> float:
    summary = summary_of(layer, dimension)
    return 0.0 if summary is None else summary.total_over_scale if free else summary.total_persistence


def _count(layer: LayerTopology, dimension: int) -> float:
    summary = summary_of(layer, dimension)
    return 0 if summary is None else summary.count


def _longest(layer: LayerTopology, dimension: int) -> float:
    summary = summary_of(layer, dimension)
    return 0.0 if summary is None else summary.max_over_scale
