"""Sentences about geometry, similarity, tracking and attention: what is seen, and what it does not mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cohomcli.report.document import Fact
from cohomcli.report.names import clean, count, number, percent
from cohomcli.results import Entry
from cohomcli.topology.figures import Geometry, LayerTracking, SimilarityMatrix


def representation_seen(entry: Entry) -> list[str]:
    """What the entry shows, sentence by sentence."""
    layers = entry.topology.layers if entry.topology else ()
    known = [(layer.name, layer.geometry) for layer in layers if layer.geometry is not None]
    sentences = [_dimension(known), _direction(known)]
    if entry.representation is not None:
        sentences += [_closest(matrix) for matrix in entry.representation.similarity]
        sentences += [_tracked(entry.representation.tracking)] if entry.representation.tracking else []
    return [sentence for sentence in sentences if sentence]


def _dimension(known: Sequence[tuple[str, Geometry]]) -> str:
    span = _span(known, lambda geometry: geometry.twonn)
    return f"Intrinsic dimension (TwoNN): {span}." if span else ""


def _direction(known: Sequence[tuple[str, Geometry]]) -> str:
    span = _span(known, lambda geometry: geometry.mean_cosine)
    return f"Mean cosine between two texts: {span}; 1 would mean that all point the same way." if span else ""


def _span(known: Sequence[tuple[str, Geometry]], value: Callable[[Geometry], float | None]) -> str:
    figures = [(figure, name) for name, geometry in known if (figure := value(geometry)) is not None]
    if not figures:
        return ""
    low, high = min(figures), max(figures)
    if len(figures) == 1 or low[0] == high[0]:
        return number(low[0], 3)
    return f"from {number(low[0], 3)} ({clean(low[1], 40)}) to {number(high[0], 3)} ({clean(high[1], 40)})"


def _closest(matrix: SimilarityMatrix) -> str:
    """The break in the sequence of layers: the neighbours that are least alike."""
    steps = [(matrix.values[at][at + 1], at) for at in range(len(matrix.layers) - 1)]
    known = [(value, at) for value, at in steps if value is not None]
    if not known:
        return f"{matrix.title} is not defined between neighbouring layers."
    value, at = min(known) if matrix.kind == "similarity" else max(known)
    pair = f"{clean(matrix.layers[at], 40)} and {clean(matrix.layers[at + 1], 40)}"
    return f"Of all neighbouring layers, {pair} are the least alike by {matrix.title} ({number(value, 3)})."


def _tracked(tracking: LayerTracking) -> str:
    loops = tracking.dimensions[-1]
    low = min(range(len(tracking.kept)), key=lambda at: tracking.kept[at])
    kept = (
        f"A text keeps between {percent(min(tracking.kept))} (from {clean(tracking.layers[low], 40)} to "
        f"{clean(tracking.layers[low + 1], 40)}) and {percent(max(tracking.kept))} of its {tracking.neighbours} "
        "nearest neighbours from one layer to the next"
    )
    if loops.mean_life is None:
        return f"{kept}."
    return f"{kept}; a loop of the neighbour graph lives through {number(loops.mean_life, 3)} layers on average."


def representation_limits(entry: Entry) -> list[str]:
    """What these figures do not mean, said only where it applies."""
    layers = entry.topology.layers if entry.topology else ()
    figures = [layer.geometry for layer in layers if layer.geometry is not None]
    sentences = []
    if any(figure.twonn is not None for figure in figures):
        n = max(figure.n_points for figure in figures)
        sentences.append(
            f"Intrinsic dimensions are estimates from {count(n, 'text')}; all of them fall short when the true one is "
            "large (2,000 points of a 20-dimensional normal distribution give 16.5 by TwoNN and 15.2 by MLE): compare "
            "layers, not single figures."
        )
    result = entry.representation
    if result is not None and any(matrix.measure == "cka" for matrix in result.similarity):
        sentences.append(
            "Plain CKA grows with the width of a layer when texts are few; debiased CKA (cka-debiased) does not."
        )
    if result is not None and any(not matrix.bounded for matrix in result.similarity):
        sentences.append("Divergences without an upper bound grow with the number of texts: compare within one run.")
    if result is not None and result.attention is not None:
        sentences.append(
            "Attention weights say where a head reads, not what it passes on: a strongly attended token may have a "
            "small value vector."
        )
    return sentences


_GLOSSARY = (
    Fact(
        "intrinsic dimension",
        "how many directions the points fill locally: TwoNN (Facco et al. 2017), maximum likelihood (Levina, Bickel "
        "2004), growth of H0 persistence (Birdal et al. 2021; Tulchinskii et al. 2023)",
    ),
    Fact("hubness", "the skewness of how often a text is a near neighbour of others (Radovanovic et al. 2010)"),
    Fact("mean cosine", "of two different texts: anisotropy (Ethayarajh 2019)"),
    Fact(
        "participation ratio, effective rank",
        "how many directions carry the variance: (sum v)^2 / sum v^2 of the variances v, and exp of the entropy of the "
        "singular values (Roy, Vetterli 2007)",
    ),
)
_TRACKED = Fact(
    "tracked over the layers",
    "zigzag persistence of the nearest-neighbour graphs of consecutive layers (Gardinazzi et al. 2025): a class is the "
    "same as long as it also exists in what two layers share",
)
_ATTENTION = Fact("attention graph", "tokens joined by their attention weights (Kushnareva et al. 2021)")


def representation_glossary(entries: Iterable[Entry]) -> list[Fact]:
    """What the words mean, with the papers; only what an entry has."""
    seen = list(entries)
    facts: list[Fact] = []
    if any(layer.geometry for entry in seen if entry.topology for layer in entry.topology.layers):
        facts += _GLOSSARY
    results = [entry.representation for entry in seen if entry.representation is not None]
    measures = {matrix.measure: matrix for result in results for matrix in result.similarity}
    facts += [Fact(matrix.title, f"a {matrix.kind} between layers ({matrix.paper})") for matrix in measures.values()]
    facts += [_TRACKED] if any(result.tracking for result in results) else []
    return [*facts, _ATTENTION] if any(result.attention for result in results) else facts
