"""The part of an entry that is about an ablation: verdicts in words, a row per arm, the comparisons, the weights."""

from __future__ import annotations

from collections.abc import Sequence

from cohomcli.report.document import Column, Fact, Part, Table
from cohomcli.report.names import DASH, clean, count, listing, number, percent
from cohomcli.report.picture import Picture, in_groups
from cohomcli.training.ablation_results import AblationResult, ArmResult, PairedComparison

WHAT = {
    "none": "the task's loss alone",
    "ours": "the exact-sequence and the spectral-sequence loss",
    "exact": "the exact-sequence loss",
    "spectral": "the spectral-sequence loss",
    "literal": "the published loss on activations",
    "placebo": "states drawn to fixed random directions",
    "vicreg": "variance and covariance of the last states",
    "orthogonal": "orthogonality of the blocks' matrices",
    "compute": "the task's loss alone, for the steps that our losses cost",
}
_BETTER = {"accuracy": "more is better", "loss": "less is better"}


def ablation_part(result: AblationResult, pictures: Sequence[Picture]) -> Part:
    """The section on an ablation; `pictures` may hold others as well."""
    return Part(
        title="Ablation",
        headline=tuple(_headline(result)),
        seen=tuple(_seen(result)),
        overview=in_groups(pictures, "training"),
        limits=tuple(_limits(result)),
        notes=(),
        blocks=(_arms(result), _comparisons(result), _tuning(result)),
    )


def _headline(result: AblationResult) -> list[Fact]:
    train, validation, test = result.sizes
    ours = next((arm for arm in result.arms if arm.arm == "ours"), None)
    return [
        *([Fact("our losses", ours.verdict, "against the task's loss alone, on the test split")] if ours else []),
        Fact("metric", result.metric, f"{_BETTER[result.metric]}; on {count(test, 'test row')}"),
        Fact("seeds", f"{len(result.seeds)}", f"and {len(result.tune_seeds)} other to choose each arm's weight"),
        Fact("data", f"{train:,}", f"rows to train on, {validation:,} to choose weights by"),
        Fact("parameters", f"{result.n_parameters:,}", ""),
        Fact("cost of our losses", f"{number(result.compute_ratio, 3)}\N{MULTIPLICATION SIGN}", "CPU time of a step"),
    ]


def _seen(result: AblationResult) -> list[str]:
    sentences = [f"Task: {clean(result.about, 300)}."]
    against_plain = [one for one in result.comparisons if one.against == "none"]
    for verdict, words in (("helps", "did better than"), ("hurts", "did worse than")):
        found = [one.arm for one in against_plain if one.verdict == verdict]
        if found:
            sentences.append(f"{listing(found).capitalize()} {words} the task's loss alone, and not by chance.")
    silent = [one.arm for one in against_plain if one.verdict == "no evidence"]
    if silent:
        sentences.append(f"There is no evidence that {listing(silent)} changed anything.")
    sentences += [_rival(one) for one in result.comparisons if one.against != "none"]
    diverged = [arm for arm in result.arms if arm.diverged]
    sentences += [f"{arm.arm.capitalize()} diverged with {count(arm.diverged, 'seed')}." for arm in diverged]
    return sentences


def _rival(one: PairedComparison) -> str:
    rivals = {"placebo": "a placebo of equal size", "compute": "the plain arm with the same compute"}
    named = rivals.get(one.against, one.against)
    if one.verdict == "no evidence":
        return f"Against {named}, our losses show no difference that these seeds could tell from chance."
    return f"Against {named}, our losses are {'better' if one.verdict == 'helps' else 'worse'}."


def _limits(result: AblationResult) -> list[str]:
    detectable = [one.detectable for one in result.comparisons if (one.arm, one.against) == ("ours", "none")]
    found = [
        f"A verdict holds at {percent(result.level)} for all {len(result.comparisons)} comparisons together; it needs "
        "a bootstrap interval that leaves out zero and a paired t test, both corrected.",
        "Seeds differ in initial weights and in the order of the data, not in the data: another draw of it may differ.",
        "Small models for a short time: what holds here says little about large ones.",
    ]
    if detectable:
        words = f"A difference of ours from plain below about {number(detectable[0], 2)} in {result.metric} would not"
        found.insert(0, f"{words} have been called with these seeds.")
    return found


def _arms(result: AblationResult) -> Table:
    columns = (
        Column("arm", numeric=False),
        Column("is", numeric=False, prose=True),
        Column("weight", "share of the task's gradient at the start"),
        Column("steps"),
        Column(result.metric, f"mean over seeds on the test split; {_BETTER[result.metric]}"),
        Column("difference", "mean over seeds of the difference from none"),
        Column("interval", "bootstrap of that difference, corrected for all comparisons"),
        Column("p", "paired t test, corrected"),
        Column("verdict", numeric=False),
        Column("accuracy" if result.metric == "loss" else "loss", "the other figure, not judged"),
    )
    rows = tuple(_arm_row(result, arm) for arm in result.arms)
    return Table("Arms on the test split", columns, rows)


def _arm_row(result: AblationResult, arm: ArmResult) -> tuple[str, ...]:
    return (
        arm.arm,
        WHAT.get(arm.arm, ""),
        number(arm.weight),
        f"{arm.steps:,}",
        number(arm.mean, zeros=True),
        signed(arm.difference),
        interval(arm.interval),
        number(arm.p_value, 2),
        arm.verdict if not arm.diverged else f"{arm.verdict} (diverged)",
        number(arm.accuracy if result.metric == "loss" else arm.loss, zeros=True),
    )


def _comparisons(result: AblationResult) -> Table:
    columns = (
        Column("arm", numeric=False),
        Column("against", numeric=False),
        Column("difference", "mean over seeds"),
        Column("interval", "bootstrap, corrected"),
        Column("p", "paired t test"),
        Column("p corr.", "Holm"),
        Column("detectable", "the smallest mean difference that would have been called"),
        Column("verdict", numeric=False),
    )
    rows = tuple(
        (
            one.arm,
            one.against,
            signed(one.difference),
            interval(one.interval),
            number(one.p_value, 2),
            number(one.p_adjusted, 2),
            number(one.detectable, 2),
            one.verdict,
        )
        for one in result.comparisons
    )
    return Table("Comparisons, paired by seed", columns, rows)


def _tuning(result: AblationResult) -> Table:
    columns = (
        Column("arm", numeric=False),
        Column("weight"),
        Column(f"{result.metric} on the validation split", "mean over the tuning seeds"),
        Column("chosen", numeric=False),
    )
    rows = tuple(
        (
            one.arm,
            number(one.weight),
            number(one.validation, zeros=True) if one.validation is not None else "diverged",
            "yes" if one.chosen else "",
        )
        for one in result.tuning
    )
    return Table("Weights that were tried", columns, rows, "equally many for every arm; the test split played no part")


def signed(value: float | None) -> str:
    """A difference with its sign, three digits; a dash for None."""
    return DASH if value is None else f"{value:+.3g}"


def interval(limits: tuple[float, float] | None) -> str:
    """`-0.01 to +0.02`; a dash for None."""
    return DASH if limits is None else f"{signed(limits[0])} to {signed(limits[1])}"
