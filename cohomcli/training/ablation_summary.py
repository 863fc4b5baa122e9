"""From the cells of an ablation to its result: means by arm, comparisons, and the weights that were tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from cohomcli.training.ablation import AblationPlan, AblationTask, validation_mean
from cohomcli.training.ablation_results import AblationResult, ArmResult, CellResult, PairedComparison, TunedWeight
from cohomcli.training.paired import Differences, judge

REFERENCE = "none"
# beyond the plain arm, ours must stand against a term that means nothing, and against its own cost in steps
RIVALS = ("placebo", "compute")


def summarise(
    task: AblationTask,
    plan: AblationPlan,
    tuning: Sequence[CellResult],
    final: Sequence[CellResult],
    n_parameters: int,
    level: float,
) -> AblationResult:
    """The result of all cells of `plan`."""
    values = {name: _values(final, name, task.metric) for name in plan.arms}
    comparisons = judge(_differences(values), task.metric, level)
    chosen = {result.arm: result.weight for result in final}
    return AblationResult(
        task=task.name,
        about=task.about,
        metric=task.metric,
        level=level,
        seeds=plan.seeds,
        tune_seeds=plan.tune_seeds,
        sizes=(len(task.train), len(task.validation), len(task.test)),
        n_parameters=n_parameters,
        compute_ratio=plan.compute_ratio,
        arms=tuple(_arm_result(name, values, final, comparisons) for name in plan.arms),
        comparisons=comparisons,
        tuning=tuple(_tuned(plan, tuning, chosen, task)),
    )


def _values(final: Sequence[CellResult], arm: str, metric: str) -> tuple[float | None, ...]:
    return tuple(r.test_loss if metric == "loss" else r.test_accuracy for r in final if r.arm == arm)


def _differences(values: Mapping[str, tuple[float | None, ...]]) -> list[Differences]:
    """Every arm against the plain one, and ours against its rivals; arms with diverged seeds are not compared."""
    pairs = [(name, REFERENCE) for name in values if name != REFERENCE]
    pairs += [("ours", rival) for rival in RIVALS if "ours" in values and rival in values]
    found = []
    for arm, against in pairs:
        apart = [a - b for a, b in zip(values[arm], values[against], strict=True) if a is not None and b is not None]
        if len(apart) == len(values[arm]) and len(apart) > 1:
            found.append(Differences(arm, against, tuple(apart)))
    return found


def _arm_result(
    name: str,
    values: Mapping[str, tuple[float | None, ...]],
    final: Sequence[CellResult],
    comparisons: Sequence[PairedComparison],
) -> ArmResult:
    mine = [result for result in final if result.arm == name]
    diverged = sum(result.diverged for result in mine)
    plain_ended = None not in values[REFERENCE]
    whole = diverged == 0
    row = ArmResult(
        arm=name,
        weight=mine[0].weight,
        steps=mine[0].steps,
        mean=_mean(values[name]) if whole else None,
        values=values[name],
        loss=_mean([r.test_loss for r in mine]) if whole else None,
        accuracy=_mean([r.test_accuracy for r in mine]) if whole else None,
        diverged=diverged,
        verdict="reference" if name == REFERENCE else "hurts" if diverged and plain_ended else "no evidence",
    )
    against = next((c for c in comparisons if (c.arm, c.against) == (name, REFERENCE)), None)
    if against is None:
        return row
    return ArmResult(
        **{**row.__dict__, "difference": against.difference, "interval": against.interval,
           "p_value": against.p_adjusted, "verdict": against.verdict}
    )  # fmt: skip


def _mean(values: Sequence[float | None]) -> float:
    return fmean(value for value in values if value is not None)


def _tuned(
    plan: AblationPlan, tuning: Sequence[CellResult], chosen: Mapping[str, float | None], task: AblationTask
) -> list[TunedWeight]:
    arms = dict.fromkeys(result.arm for result in tuning)
    return [
        TunedWeight(name, weight, validation_mean(tuning, name, weight, task.metric), chosen.get(name) == weight)
        for name in arms
        for weight in plan.weights
    ]
