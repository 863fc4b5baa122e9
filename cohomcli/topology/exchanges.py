"""The permutation tests of a comparison: analyses against each other on their texts, or among a population of models.

Each test gives every layer a p-value, one corrected for the layers of the test, and one number for the whole test,
the smallest of the corrected ones, which Holm's method then corrects for all tests of its kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from numpy.typing import NDArray

from cohomcli.errors import UsageError
from cohomcli.progress import Progress, silent
from cohomcli.topology.correlation import holm
from cohomcli.topology.drift import Subject
from cohomcli.topology.permutation import (
    MIN_BLOCK,
    ExchangeOptions,
    Exchanges,
    LayerExchange,
    exchange_models_by_layer,
    exchange_texts_by_layer,
    shapes_of,
)

STEP = "permutations"


@dataclass(frozen=True)
class ExchangeTest:
    """The test of `row` against the row `against` (None: against the population; itself: each layer against the next).

    `p_value` is the smallest `p_joint` of the `layers`: that of the test as a whole. `p_holm` is it corrected for all
    tests of the same kind. Both are None, and `reason` says why, where the test could not be made.
    """

    row: int
    against: int | None
    layers: tuple[LayerExchange, ...] = ()
    p_value: float | None = None
    p_holm: float | None = None
    units: int = 0
    arrangements: int = 0
    method: str = ""
    reason: str = ""


@dataclass(frozen=True)
class PermutationReport:
    """All tests: pairs of rows by exchanging `texts`, and so each layer of a row with its next one (`consecutive`);
    rows against the `members` of a `population` of models.

    `p_texts` and `p_population` are the smallest corrected p-values of either kind, None unless every one of its tests
    could be made (the reasons say why not): a gate must not pass on what was not tested.
    """

    texts: tuple[ExchangeTest, ...]
    consecutive: tuple[ExchangeTest, ...]
    population: tuple[ExchangeTest, ...]
    members: tuple[str, ...]
    p_texts: float | None
    p_population: float | None
    reason_texts: str = ""
    reason_population: str = ""


@dataclass(frozen=True)
class Population:
    """Models to be compared with: their names in reports and what is known of them, in the same order."""

    names: tuple[str, ...] = ()
    subjects: tuple[Subject, ...] = ()


def permutation_report(
    subjects: Sequence[Subject],
    pairs: Sequence[tuple[int, int | None]],
    tested: Sequence[int],
    population: Population,
    options: ExchangeOptions,
    progress: Progress = silent,
) -> PermutationReport:
    """Test rows i and j of every (i, j) of `pairs`, and every row of `tested` against the `population`, if any.

    Raises:
        AnalysisIncomplete: stored activations for which the metric is not defined.
    """
    rows = list(tested) if population.subjects else []
    texts: list[ExchangeTest] = []
    others: list[ExchangeTest] = []
    alone = [subject for subject in subjects if pairs and len(subject.layers) > 1]
    steps = len(pairs) + len(rows) + len(alone)
    for row, against in pairs:
        progress(STEP, len(texts), steps)
        texts.append(_texts_test(row, None if against is None else subjects[against], subjects[row], options))
    for row in rows:
        progress(STEP, len(texts) + len(others), steps)
        others.append(_population_test(row, subjects[row], population, options))
    consecutive: list[ExchangeTest] = []
    for subject in alone:
        progress(STEP, len(pairs) + len(rows) + len(consecutive), steps)
        consecutive.append(_consecutive_test(subject, options))
    progress(STEP, steps, steps)
    first, second = _with_holm(texts), _with_holm(others)
    return PermutationReport(
        texts=first,
        consecutive=_with_holm(consecutive),
        population=second,
        members=population.names,
        p_texts=_smallest(first),
        p_population=_smallest(second),
        reason_texts=_reason(first, "no --permutations were asked for, or there is no pair"),
        reason_population=_reason(second, "no --population was named"),
    )


def _texts_test(row: int, other: Subject | None, one: Subject, options: ExchangeOptions) -> ExchangeTest:
    against = None if other is None else other.row
    if other is None:
        return ExchangeTest(row, None, reason="there is nothing to test it against")
    if one.texts != other.texts:
        return ExchangeTest(row, against, reason="not the same texts, pooled alike")
    first, second = one.activations, other.activations
    if first is None or second is None:
        return ExchangeTest(row, against, reason="a run keeps no activations")
    theirs = {layer.name for layer in other.layers}
    common = [layer.name for layer in one.layers if layer.name in theirs]
    return _exchange(one, against, ((name, first.layer(name), second.layer(name)) for name in common), options)


def _consecutive_test(one: Subject, options: ExchangeOptions) -> ExchangeTest:
    """Each layer against the next of the same model."""
    stored = one.activations
    if stored is None:
        return ExchangeTest(one.row, one.row, reason="the run keeps no activations")
    pairs = pairwise(layer.name for layer in one.layers)
    layers = ((f"{first} to {second}", stored.layer(first), stored.layer(second)) for first, second in pairs)
    return _exchange(one, one.row, layers, options)


def _exchange(
    one: Subject,
    against: int | None,
    layers: Iterable[tuple[str, NDArray[Any], NDArray[Any]]],
    options: ExchangeOptions,
) -> ExchangeTest:
    """By as many blocks of texts as there are enough texts for."""
    n = min((layer.n_points for layer in one.layers), default=0)
    try:
        found = exchange_texts_by_layer(layers, replace(options, blocks=min(options.blocks, max(n // MIN_BLOCK, 1))))
    except UsageError as error:
        return ExchangeTest(one.row, against, reason=error.message)
    return _test(one.row, against, found)


def _population_test(row: int, one: Subject, population: Population, options: ExchangeOptions) -> ExchangeTest:
    members = [
        member for member in population.subjects if not (one.weights and member.weights == one.weights)
    ]  # a model is no member of the population that it is compared with
    strange = [member for member in members if member.texts != one.texts]
    if strange:
        return ExchangeTest(row, None, reason="the population was not analysed on the same texts, pooled alike")
    try:
        found = exchange_models_by_layer(
            [shapes_of(one.layers)], [shapes_of(member.layers) for member in members], options
        )
    except UsageError as error:
        return ExchangeTest(row, None, reason=error.message)
    return _test(row, None, found)


def _test(row: int, against: int | None, found: Exchanges) -> ExchangeTest:
    smallest = min(layer.p_joint for layer in found.layers)
    return ExchangeTest(row, against, found.layers, smallest, None, found.units, found.arrangements, found.method)


def _with_holm(tests: Sequence[ExchangeTest]) -> tuple[ExchangeTest, ...]:
    adjusted = iter(holm([test.p_value for test in tests if test.p_value is not None]))
    return tuple(test if test.p_value is None else replace(test, p_holm=next(adjusted)) for test in tests)


def _smallest(tests: Sequence[ExchangeTest]) -> float | None:
    known = [test.p_holm for test in tests if test.p_holm is not None]
    return min(known) if known and len(known) == len(tests) else None


def _reason(tests: Sequence[ExchangeTest], none: str) -> str:
    return next((test.reason for test in tests if test.reason), "") if tests else none
