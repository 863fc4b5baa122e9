"""The report's labelled values: headline figures, how an entry was measured, claims, and what the words mean."""

from __future__ import annotations

from collections.abc import Iterable

from cohomcli.data.spec import TextSample
from cohomcli.models.spec import LanguageMetrics, ModelInfo
from cohomcli.report.document import Fact
from cohomcli.report.evidence import evidence_facts, longest_loop_note
from cohomcli.report.layers import dimensions_of, summary_of
from cohomcli.report.names import DASH, clean, count, listing, number, percent, ratio
from cohomcli.results import Entry
from cohomcli.topology.results import LayerTopology, TopologyResult


def headline(entry: Entry) -> list[Fact]:
    """The figures at the top of an entry; a missing one says why."""
    facts = []
    if entry.topology is not None and entry.topology.layers:
        layers = entry.topology.layers
        facts += [Fact("points per layer", f"{layers[0].n_points:,}", "one per text"), _layer_fact(layers)]
        facts += _expansion_facts(entry.topology)
        facts += [_longest_loop(layers)] if 1 in dimensions_of(layers) else []
    return [*facts, *_metric_facts(entry)]


def _layer_fact(layers: tuple[LayerTopology, ...]) -> Fact:
    ends = [clean(layer.name, 30) for layer in layers]
    return Fact("layers", str(len(layers)), ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}")


def _expansion_facts(topology: TopologyResult) -> list[Fact]:
    expansion = topology.expansion
    missing = clean(expansion.reason) or "not defined here"
    return [
        Fact(
            "raw H0 expansion",
            ratio(expansion.raw),
            missing if expansion.raw is None else _peak(expansion.peak_raw),
        ),
        Fact(
            "scale-free H0 expansion",
            ratio(expansion.scale_free),
            missing if expansion.scale_free is None else _peak(expansion.peak_scale_free),
        ),
    ]


def _peak(name: str | None) -> str:
    return f"embedding to {clean(name, 30)}" if name else "embedding to peak"


def _longest_loop(layers: tuple[LayerTopology, ...]) -> Fact:
    loops = [(s, layer) for layer in layers if (s := summary_of(layer, 1)) is not None and s.count]
    if not loops:
        return Fact("longest H1 bar", "none", "no layer has a finite H1 bar")
    longest, layer = max(loops, key=lambda loop: loop[0].max_over_scale)
    note = longest_loop_note(clean(layer.name, 30), longest)
    return Fact("longest H1 bar / scale", number(longest.max_over_scale, 3), note)


def _metric_facts(entry: Entry) -> list[Fact]:
    if entry.metrics is None:
        reason = clean(entry.metrics_reason)
        return [Fact("perplexity", DASH, reason)] if reason else []
    guess = "next-token accuracy" if entry.metrics.kind == "perplexity" else "masked-token accuracy"
    return [
        Fact(entry.metrics.kind, number(entry.metrics.perplexity), f"{number(entry.metrics.loss)} nats per token"),
        Fact(guess, percent(entry.metrics.accuracy), f"of {count(entry.metrics.n_predictions, 'prediction')}"),
    ]


def method(entry: Entry) -> list[Fact]:
    """What was analysed and how, with the hashes that identify model and texts."""
    facts: list[Fact] = []
    if entry.info is not None:
        facts += _model_facts(entry.info)
    if entry.sample is not None:
        facts += _sample_facts(entry.sample)
    if entry.n_tokens:
        cut = f"{count(entry.n_truncated, 'text')} cut at the length limit"
        facts.append(Fact("tokens", f"{entry.n_tokens:,}", cut))
    if entry.pooling:
        facts.append(Fact("pooling", clean(entry.pooling, 20), "how a text's tokens become one point"))
    if entry.topology is not None and entry.topology.layers:
        facts += _topology_facts(entry.topology.layers)
    if entry.metrics is not None:
        facts.append(Fact(entry.metrics.kind, _metric_method(entry.metrics)))
    return facts


def _model_facts(info: ModelInfo) -> list[Fact]:
    head = f"{info.lm_head} language-modelling head" if info.lm_head else "no trained language-modelling head"
    shape = f"{count(info.n_layer, 'block')}, width {info.hidden_size:,}, vocabulary {info.vocab_size:,}; "
    described = f"{info.kind}; {shape}{head}" if info.n_layer else info.kind
    trust = "; code shipped with the model was run" if info.trust_remote_code else ""
    return [
        Fact("model", clean(info.name), f"{clean(info.location)} ({info.source}{trust})"),
        Fact("architecture", clean(info.architecture), described),
        Fact("parameters", f"{info.n_parameters:,}"),
        Fact("weights SHA-256", clean(info.weights_sha256)),
    ]


def _sample_facts(sample: TextSample) -> list[Fact]:
    drawn = (
        f"{count(len(sample.texts), 'text')} drawn with seed {sample.seed} from {sample.n_available:,} distinct ones"
    )
    split = f", split {clean(sample.split, 40)}" if sample.split else ""
    return [
        Fact("data set", clean(sample.name), f"{clean(sample.source)}{split}, one text per {clean(sample.unit, 20)}"),
        Fact("texts", f"{len(sample.texts):,}", drawn),
        Fact("texts SHA-256", clean(sample.sha256)),
    ]


def _topology_facts(layers: tuple[LayerTopology, ...]) -> list[Fact]:
    top = max(dimensions_of(layers), default=0)
    projected = [layer for layer in layers if layer.pca_dim < layer.ambient_dim]
    shares = [layer.explained_variance for layer in projected]
    pca = "none: the full width was analysed"
    if projected:
        kept = f"{' to '.join(dict.fromkeys((percent(min(shares)), percent(max(shares)))))} of the variance kept"
        sizes = _several(layer.pca_dim for layer in projected)
        pca = f"{sizes} components in {len(projected)} of {len(layers)} layers; {kept}"
    return [
        Fact(
            "filtration",
            f"Vietoris-Rips, H0 to H{top}" if top else "Vietoris-Rips, H0",
            "a bar lives from birth to death",
        ),
        Fact("metric", _several(clean(layer.metric, 20) for layer in layers)),
        Fact("PCA", pca, "per layer"),
        Fact("engine", _several(clean(layer.engine, 30) for layer in layers)),
        *evidence_facts(layers),
    ]


def _several(values: Iterable[object]) -> str:
    return listing(dict.fromkeys(str(value) for value in values))


def _metric_method(metrics: LanguageMetrics) -> str:
    if metrics.kind == "perplexity":
        return "exp of the mean cross-entropy over every next token of the analysed texts"
    sampled = " on a sample of positions" if metrics.standard_error is not None else ""
    return f"exp of the mean cross-entropy with one token masked at a time{sampled} (Salazar et al. 2020)"


def claims(entry: Entry) -> list[Fact]:
    """Each claim with how it is known (`label`) and its certificate (`note`)."""
    return [
        Fact(claim.status, clean(claim.text, 400), clean(claim.certificate) if claim.certificate else "")
        for claim in entry.claims
    ]


_GLOSSARY = (
    Fact("bar", "a topological feature with the distance at which it appears (birth) and vanishes (death)"),
    Fact("lifetime", "death minus birth of a bar; the class of H0 that never dies is kept apart and in no sum"),
    Fact("H0", "connected pieces: every distinct point is born at 0 and dies when it joins a neighbour's piece"),
    Fact("H1", "loops: born when a ring of points closes, dead when it is filled"),
    Fact("H2", "voids enclosed by points"),
    Fact("total persistence", "the sum of all finite lifetimes"),
    Fact("scale", "the mean distance between two points of the layer's cloud, after PCA"),
    Fact("scale-free", "divided by the scale; it does not change when all activations are multiplied by one number"),
    Fact(
        "persistence entropy",
        "-sum p log p in nats, p a bar's share of the total lifetime (Chintakunta et al. 2015); at most the log of the "
        "number of bars",
    ),
    Fact("Betti curve", "how many bars are alive at each distance"),
    Fact(
        "p-value",
        "how often clouds of the null model have a bar at least as pronounced as the layer's; corrected: for all "
        "layers and dimensions of the analysis together",
    ),
    Fact("expansion", "the largest H0 total of a block divided by the embedding's, raw or scale-free"),
    Fact("distinct", "how many of the points differ from one another; a layer with few is degenerate"),
    Fact("measured, estimated, proved", "how a claim is known: computed on named inputs, inferred, or certified"),
)


def glossary(entries: Iterable[Entry]) -> list[Fact]:
    """What the report's words mean; dimensions that no entry has are left out."""
    layers = [layer for entry in entries if entry.topology for layer in entry.topology.layers]
    absent = {"H0", "H1", "H2"} - {f"H{dimension}" for dimension in dimensions_of(layers)}
    return [fact for fact in _GLOSSARY if fact.label not in absent] if layers else []
