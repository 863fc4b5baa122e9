"""Entries as the engines would return them, from ripser on synthetic clouds, for the tests of the reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from ripser import ripser
from scipy.spatial.distance import pdist, squareform
from scipy.stats import entropy

from cohomcli.data.spec import TextSample
from cohomcli.models.spec import LanguageMetrics, ModelInfo
from cohomcli.results import Claim, Entry
from cohomcli.topology.results import (
    Array,
    BettiCurve,
    Diagram,
    DimensionSummary,
    Expansion,
    LayerTopology,
    TopologyResult,
)

HOSTILE_NAMES = (
    "<script>alert('x')</script>",
    "a|b`c`[link](http://evil.example)",
    "line one\n# heading\n| cell |",
    '"><img src=http://evil.example/x.png onerror=alert(1)>',
    '=HYPERLINK("http://evil.example")',
    "../../etc/passwd",
    "$\\frac{1}{0}$ _x_ **b** \u202egnp.exe \udcff \x1b[31m",
    "&lt;b&gt; {{ 7*7 }} {% raw %} ![i](x)",
    "\u5c42\u4e00 \U0001f600",
    "n" * 400,
)


def noisy_circle(n: int, dim: int, noise: float, seed: int) -> Array:
    """(n, dim) points near a unit circle in the first two coordinates, Gaussian `noise` in all."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(0, 2 * np.pi, n)
    points = noise * rng.standard_normal((n, dim))
    points[:, 0] += np.cos(angles)
    points[:, 1] += np.sin(angles)
    return points


def layer(name: str, points: Array, maxdim: int = 1, threshold: float = np.inf) -> LayerTopology:
    """The topology of one cloud, by ripser; `censored` holds what is alive at a finite `threshold`."""
    scale = float(pdist(points).mean()) if len(points) > 1 else 0.0
    raw = ripser(squareform(pdist(points)), maxdim=maxdim, thresh=threshold, distance_matrix=True)["dgms"]
    diagrams = tuple(_diagram(k, np.asarray(pairs, float), np.isfinite(threshold)) for k, pairs in enumerate(raw))
    return LayerTopology(
        name=name,
        n_points=len(points),
        n_distinct=len(np.unique(points, axis=0)),
        ambient_dim=768,
        pca_dim=points.shape[1],
        explained_variance=0.93,
        scale=scale,
        mean_norm=float(np.linalg.norm(points, axis=1).mean()),
        metric="euclidean",
        engine="ripser",
        diagrams=diagrams,
        summaries=tuple(_summary(diagram, scale) for diagram in diagrams),
        betti=_betti(diagrams),
    )


def _diagram(dimension: int, pairs: Array, limited: bool) -> Diagram:
    finite = pairs[np.isfinite(pairs[:, 1])]
    alive = pairs[~np.isfinite(pairs[:, 1]), 0]
    is_essential = dimension == 0 and not limited
    none = np.empty(0)
    return Diagram(
        dimension,
        finite[np.lexsort((finite[:, 1], finite[:, 0]))],
        alive if is_essential else none,
        none if is_essential else alive,
    )


def _summary(diagram: Diagram, scale: float) -> DimensionSummary:
    lifetimes = diagram.pairs[:, 1] - diagram.pairs[:, 0]
    total, longest = float(lifetimes.sum()), float(lifetimes.max(initial=0.0))
    return DimensionSummary(
        dimension=diagram.dimension,
        count=len(lifetimes),
        total_persistence=total,
        max_lifetime=longest,
        entropy=float(entropy(lifetimes)) if len(lifetimes) else 0.0,
        essential=len(diagram.essential),
        censored=len(diagram.censored),
        total_over_scale=total / scale if scale else 0.0,
        max_over_scale=longest / scale if scale else 0.0,
    )


def _betti(diagrams: Sequence[Diagram]) -> BettiCurve:
    top = max((float(d.pairs.max(initial=0.0)) for d in diagrams), default=0.0)
    grid = np.linspace(0.0, top * 1.05 or 1.0, 128)
    values = []
    for d in diagrams:
        births = np.concatenate([d.pairs[:, 0], d.essential, d.censored])
        values.append((births[:, None] <= grid).sum(0) - (d.pairs[:, 1, None] <= grid).sum(0))
    return BettiCurve(grid, np.asarray(values, dtype=np.int64))


def topology(layers: Sequence[LayerTopology], notes: Sequence[str] = ()) -> TopologyResult:
    """A result over `layers`, with the expansion as DESIGN section 5 defines it."""
    start = next((item for item in layers if item.name == "embedding"), None)
    blocks = [item for item in layers if item.name.startswith("layer_") and "." not in item.name]
    if start is None or not blocks or not start.summaries[0].total_persistence:
        return TopologyResult(
            tuple(layers), Expansion(None, None, None, None, "there is no embedding layer"), tuple(notes)
        )
    raw = max(blocks, key=lambda item: item.summaries[0].total_persistence)
    free = max(blocks, key=lambda item: item.summaries[0].total_over_scale)
    expansion = Expansion(
        raw.summaries[0].total_persistence / start.summaries[0].total_persistence,
        free.summaries[0].total_over_scale / start.summaries[0].total_over_scale,
        raw.name,
        free.name,
    )
    return TopologyResult(tuple(layers), expansion, tuple(notes))


@cache
def layers(n_layers: int, n_points: int = 40, dim: int = 8, maxdim: int = 1) -> tuple[LayerTopology, ...]:
    """Embedding, blocks and final norm whose clouds grow a hundredfold and bend from noise into a circle."""
    names = ["embedding", *(f"layer_{i}" for i in range(n_layers - 2)), "final_norm"][:n_layers]
    clouds = []
    for i, name in enumerate(names):
        depth = i / max(n_layers - 1, 1)
        size = 2.0 if name == "final_norm" else 100.0**depth
        clouds.append(layer(name, size * noisy_circle(n_points, dim, 1.0 - 0.9 * depth, i), maxdim))
    return tuple(clouds)


def info(name: str) -> ModelInfo:
    """A plausible decoder called `name`."""
    return ModelInfo(
        name,
        "folder",
        f"models/{name}",
        "LlamaForCausalLM",
        "decoder",
        30,
        576,
        49152,
        134_515_008,
        8192,
        "causal",
        "ab" * 32,
    )


def sample(name: str, n: int = 40) -> TextSample:
    """`n` texts of a data set called `name`."""
    return TextSample(name, "builtin", "held-out", "paragraph", 0, 900, tuple(f"text {i}" for i in range(n)), "cd" * 32)


PERPLEXITY = LanguageMetrics("perplexity", 3.9120230054281464, 50.00000000000002, 0.3125, 4096)


def entry(model: str = "tiny-gpt", dataset: str = "builtin", n_layers: int = 8, **changes: object) -> Entry:
    """A finished entry with `n_layers` layers; `changes` replace its fields."""
    whole = Entry(
        model=model,
        dataset=dataset,
        info=info(model),
        sample=sample(dataset),
        pooling="last",
        n_tokens=5120,
        n_truncated=3,
        metrics=PERPLEXITY,
        topology=topology(layers(n_layers)),
        claims=(Claim("Diagrams were computed on 40 named texts.", "measured"),),
        notes=("padding side: left",),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def renamed(names: Sequence[str]) -> tuple[LayerTopology, ...]:
    """As many layers as there are `names`, each carrying one of them."""
    return tuple(replace(item, name=name) for item, name in zip(layers(len(names)), names, strict=True))


def hostile_entry() -> Entry:
    """Every name a user, a hub or a file can supply is an attack."""
    bad = HOSTILE_NAMES[0]
    return entry(
        model=HOSTILE_NAMES[3],
        dataset=HOSTILE_NAMES[1],
        info=replace(info(bad), location=HOSTILE_NAMES[3], architecture=HOSTILE_NAMES[7]),
        sample=replace(sample(HOSTILE_NAMES[2]), source=HOSTILE_NAMES[6], split=bad),
        topology=topology(renamed(HOSTILE_NAMES), notes=(HOSTILE_NAMES[1],)),
        claims=(Claim(HOSTILE_NAMES[1], "measured", bad),),
        notes=HOSTILE_NAMES,
    )


def failed_entry() -> Entry:
    """A model that could not be loaded."""
    return Entry(model="broken", dataset="builtin", error="models/broken has no config.json; point --model at a folder")
