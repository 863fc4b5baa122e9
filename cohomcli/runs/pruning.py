"""A pruning result as part of results.json, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cohomcli.pruning.results import PruningResult
    from cohomcli.pruning.shape import TopologyChange


def pruning_document(result: PruningResult) -> dict[str, Any]:
    """The result without what differs from run to run; `perplexity` of the first data set also flat, for gates."""
    document = asdict(result)
    del document["seconds"]
    sets = document.pop("perplexity")
    document["perplexity"] = {name: sets[0][name] for name in ("before", "pruned", "after")} if sets else {}
    document["evaluations"] = sets
    document["exactness"] = dict(zip(("before", "after"), document["exactness"], strict=True))
    before, after = result.n_parameters
    document["bytes"] = {"before": 4 * before, "after": 4 * after}
    return document


def read_pruning(document: Mapping[str, Any]) -> PruningResult:
    """The inverse; raises KeyError or TypeError on a document of another version."""
    from cohomcli.models.pairs import PairReport
    from cohomcli.pruning.results import Factored, Pass, Perplexity, PrunedMap, PruningResult, Recovery, SweepPoint

    plain = {key: value for key, value in document.items() if key not in ("perplexity", "evaluations", "bytes")}
    plain["maps"] = tuple(PrunedMap(**one | {"shape": tuple(one["shape"])}) for one in document["maps"])
    plain["perplexity"] = tuple(Perplexity(**one) for one in document["evaluations"])
    plain["sweep"] = tuple(SweepPoint(**one | {"perplexity": tuple(one["perplexity"])}) for one in document["sweep"])
    plain["passes"] = tuple(
        Pass(**one | {"pruned": tuple(one["pruned"]), "recovered": tuple(one["recovered"])})
        for one in document["passes"]
    )
    for name, kind in (("recovery", Recovery), ("factored", Factored)):
        plain[name] = kind(**document[name]) if document[name] else None
    plain["topology"] = _read_topology(document["topology"]) if document["topology"] else None
    found = document["exactness"]
    plain["exactness"] = tuple(tuple(PairReport(**one) for one in found[name]) for name in ("before", "after"))
    for name in ("drift", "n_parameters", "n_nonzero", "blocks_gone"):
        plain[name] = tuple(plain[name])
    return PruningResult(**plain)


def _read_topology(document: Mapping[str, Any]) -> TopologyChange:
    from cohomcli.pruning.shape import LayerChange, TopologyChange

    layers = tuple(
        LayerChange(**one | {name: tuple(one[name]) for name in ("h0", "h1", "scale")}) for one in document["layers"]
    )
    return TopologyChange(**dict(document) | {"expansion": tuple(document["expansion"]), "layers": layers})
