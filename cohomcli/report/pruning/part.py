"""The part of an entry that is about pruning: what went, what it cost, and what it does not buy."""

from __future__ import annotations

from collections.abc import Sequence

from cohomcli.models.pairs import PairReport
from cohomcli.pruning.results import Perplexity, PrunedMap, PruningResult
from cohomcli.report.document import Column, Fact, Part, Table
from cohomcli.report.names import clean, number, percent
from cohomcli.report.picture import Picture, in_groups
from cohomcli.report.pruning.topology import topology_tables


def pruning_part(result: PruningResult, pictures: Sequence[Picture]) -> Part:
    """The section on pruning; `pictures` may hold others as well."""
    return Part(
        title="Pruning",
        headline=tuple(_headline(result)),
        seen=tuple(_seen(result)),
        overview=in_groups(pictures, "pruning"),
        limits=tuple(_limits(result)),
        notes=(),
        blocks=(
            _perplexities(result),
            *_passes(result),
            *_sweep(result),
            *_exactness(result),
            *topology_tables(result.topology),
            _maps(result),
        ),
    )


def _headline(result: PruningResult) -> list[Fact]:
    facts = [Fact("method", clean(result.method), f"pattern {result.pattern}")]
    facts += [
        Fact(
            f"perplexity, {_domain(one)}",
            number(one.after),
            f"{number(one.before)} before{_between(one)}; {clean(one.dataset)}",
        )
        for one in result.perplexity
    ]
    (before, after), kept = result.n_parameters, result.n_nonzero[1]
    return [
        *facts,
        Fact("sparsity", percent(result.sparsity), share_of(result)),
        Fact("parameters", f"{after:,}", f"{before:,} before" + (f"; {kept:,} are not zero" if kept < after else "")),
        *_factored(result),
        Fact("drift", number(result.drift[-1]), "of the last block's output: E|h - h'|^2 / E|h|^2, calibration texts"),
    ]


def share_of(result: PruningResult) -> str:
    """Of what the sparsity is a share."""
    if result.factored is not None:
        return "of the pruned maps' parameters"
    return "of the blocks" if result.blocks_gone else "of the pruned maps"


def _factored(result: PruningResult) -> list[Fact]:
    """The model with products of two maps, where there is one."""
    if result.factored is None:
        return []
    difference = number(result.factored.largest_difference)
    return [
        Fact(
            "parameters in factors",
            f"{result.factored.n_parameters:,}",
            f"factors.safetensors, loaded by load_factored; logits differ by at most {difference}",
        )
    ]


def _domain(one: Perplexity) -> str:
    return "in domain" if one.domain == "in" else "out of domain"


def _between(one: Perplexity) -> str:
    return "" if one.pruned is None else f", {number(one.pruned)} before the recovery"


def _seen(result: PruningResult) -> list[str]:
    sentences = [
        f"On {clean(one.dataset)} the perplexity went from {number(one.before)} to {number(one.after)}{_between(one)}."
        for one in result.perplexity
    ]
    if result.recovery is not None:
        sentences.append(
            f"After every pass the model was fine-tuned for {result.recovery.steps:,} steps on calibration texts, "
            f"{result.recovery.n_tokens:,} predicted tokens in all; no evaluation text was among them."
        )
    if result.blocks_gone:
        sentences.append(f"These blocks went: {', '.join(map(str, result.blocks_gone))}.")
    elif result.maps:
        worst = max(result.maps, key=lambda one: one.error)
        sentences.append(
            f"The map that lost most is {clean(worst.name)}: {percent(worst.error)} of the energy of its output on the "
            "calibration texts."
        )
    lambdas = sorted({one.shrink for one in result.maps})
    if result.method == "chain" and len(lambdas) > 1:
        sentences.append(f"Lambda was chosen per map from {', '.join(map(number, lambdas))}.")
    return sentences


def _limits(result: PruningResult) -> list[str]:
    if result.factored is not None:
        first = (
            "The model in model/ has plain matrices of the old size and is neither smaller nor faster; what is, is the "
            "model with two thin maps in their places, which cohomcli.pruning.lowrank.load_factored gives."
        )
    elif result.pattern.startswith("experts:"):
        first = (
            "The model is smaller and plain. It is not faster by that: every token still asks for as many experts as "
            "before."
        )
    elif result.pattern.partition(":")[0] in ("mlp", "heads", "blocks"):
        first = "The model is smaller and plain: every runtime that ran the dense one runs it, faster."
    else:
        first = (
            "Zeros in a dense matrix save neither memory nor time by themselves: that needs a format and kernels for "
            "sparse weights."
        )
    return [
        first,
        f"Perplexity is measured on {result.perplexity[0].n_predictions if result.perplexity else 0:,} tokens; other "
        "abilities can suffer more.",
        f"The calibration had {result.n_calibration_tokens:,} tokens; text of another kind loses more.",
    ]


def _perplexities(result: PruningResult) -> Table:
    columns = (
        Column("data set", numeric=False),
        Column("domain", numeric=False),
        Column("before"),
        *([Column("pruned", "after the last pruning, before its recovery")] if result.recovery else []),
        Column("after"),
        Column("tokens"),
    )
    rows = tuple(
        (
            clean(one.dataset),
            one.domain,
            *(number(value) for value in (one.before, one.pruned, one.after) if value is not None),
            f"{one.n_predictions:,}",
        )
        for one in result.perplexity
    )
    return Table("Perplexity", columns, rows)


def _passes(result: PruningResult) -> list[Table]:
    """Every pass on the first evaluation set, where there were several or a recovery."""
    if not result.passes:
        return []
    columns = (Column("pass"), Column("sparsity"), Column("pruned", "perplexity"), Column("recovered", "perplexity"))
    rows = tuple(
        (
            str(at),
            percent(one.sparsity),
            number(one.pruned[0]),
            number(one.recovered[0]) if one.recovered else "-",
        )
        for at, one in enumerate(result.passes, start=1)
    )
    return [Table("Passes", columns, rows, f"perplexity on {clean(result.perplexity[0].dataset)}")]


def _sweep(result: PruningResult) -> list[Table]:
    """The curve from dense over the sweep to the kept model, where there was a sweep."""
    if not result.sweep:
        return []
    columns = (
        Column("sparsity"),
        *(Column(clean(one.dataset), f"perplexity, {_domain(one)}") for one in result.perplexity),
        Column("drift"),
    )
    rows = tuple(
        (percent(sparsity), *(number(value) for value in values), number(drift))
        for sparsity, values, drift in sweep_curve(result)
    )
    return [Table("Sparsity and perplexity", columns, rows, "0 is the dense model")]


def sweep_curve(result: PruningResult) -> list[tuple[float, tuple[float, ...], float]]:
    """(sparsity, perplexity on every set, drift) in ascending sparsity, with the dense and the kept model."""
    points = {one.sparsity: (one.perplexity, one.drift) for one in result.sweep}
    points[0.0] = (tuple(one.before for one in result.perplexity), 0.0)
    after = tuple(one.after if one.pruned is None else one.pruned for one in result.perplexity)
    points[result.sparsity] = (after, result.drift[-1])
    return [(sparsity, *points[sparsity]) for sparsity in sorted(points)]


def _exactness(result: PruningResult) -> list[Table]:
    """Pairs of maps before and after, where they were measured."""
    before = {one.name: one for one in result.exactness[0]}
    after = result.exactness[1]
    if not after:
        return []
    columns = (
        Column("block", "its MLP writes, the next attention reads", numeric=False),
        Column("written", "rank of the image, 99 % of the energy"),
        Column("free", "directions that are written and not read"),
        Column("kappa", "complex defect: 0 when nothing written is read"),
        Column("eta", "homology defect: the share of the kernel that is not written"),
        Column("alignment", "1 at random, above when what is written is read"),
    )
    rows = tuple(
        (
            clean(one.name),
            *(
                f"{_shown(before.get(one.name), key)} -> {_shown(one, key)}"
                for key in ("rank_image", "free_rank", "kappa", "eta", "read_alignment")
            ),
        )
        for one in after
    )
    return [Table("Exactness, before -> after", columns, rows, "on calibration texts")]


def _shown(pair: PairReport | None, key: str) -> str:
    return "-" if pair is None else number(getattr(pair, key))


def _maps(result: PruningResult) -> Table:
    gone = "gone" if result.n_parameters[1] < result.n_parameters[0] else "zeros"
    columns = (
        Column("map", numeric=False),
        Column("shape", numeric=False),
        *([Column("rank"), Column("saved", "share of its parameters")] if result.factored else [Column(gone)]),
        Column("lambda"),
        Column("lost", "share of the output's energy on the calibration texts"),
    )
    return Table("Maps", columns, tuple(_row(one) for one in result.maps))


def _row(one: PrunedMap) -> tuple[str, ...]:
    shape = " x ".join(map(str, one.shape))
    rank = () if one.rank is None else (str(one.rank),)
    return clean(one.name), shape, *rank, percent(one.sparsity), number(one.shrink), percent(one.error)
