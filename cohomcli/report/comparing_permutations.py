"""The comparison's words and tables on permutation tests, and on layers against layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cohomcli.report.document import Column, Table
from cohomcli.report.names import DASH, clean, count, listing, number

if TYPE_CHECKING:
    from cohomcli.topology.comparison import Comparison
    from cohomcli.topology.crosslayers import CrossLayers
    from cohomcli.topology.exchanges import ExchangeTest, PermutationReport

SIGNIFICANT = 0.05
LISTED = 6
MOST_LAYERS = 60


def permutation_sentences(comparison: Comparison, labels: Sequence[str]) -> list[str]:
    """Which analyses are told apart, each with its p-value; empty without tests."""
    found = comparison.permutations
    if found is None:
        return []
    sentences = []
    if made := _made(found.texts):
        how = f"By exchanging {made[0].units} blocks of texts ({_ways(made[0])})"
        apart = [f"{_pair(test, labels)} ({_p(test)})" for test in _apart(made)]
        sentences.append(f"{how}, {len(apart)} of {count(len(made), 'pair')} {_told(apart)}.")
    if made := _made(found.population):
        how = f"Ranked among {count(made[0].units - 1, 'model')} of the population"
        apart = [f"{labels[test.row]} ({_p(test)})" for test in _apart(made)]
        sentences.append(f"{how}, {len(apart)} of {count(len(made), 'analysis', 'analyses')} {_told(apart)}.")
    unmade = [test for test in (*found.texts, *found.population) if test.reason]
    if unmade:
        what = f"{_pair(unmade[0], labels)} ({clean(unmade[0].reason, 120)})"
        rest = f", nor {len(unmade) - 1} more" if len(unmade) > 1 else ""
        sentences.append(f"No permutation test could be made of {what}{rest}.")
    return sentences


def _made(tests: Sequence[ExchangeTest]) -> list[ExchangeTest]:
    return [test for test in tests if test.p_holm is not None]


def _apart(tests: Sequence[ExchangeTest]) -> list[ExchangeTest]:
    return [test for test in tests if (1.0 if test.p_holm is None else test.p_holm) <= SIGNIFICANT]


def _told(apart: Sequence[str]) -> str:
    """The end of a sentence: how many are told apart, and which."""
    verb = "is" if len(apart) == 1 else "are"
    more = f" and {len(apart) - LISTED} more" if len(apart) > LISTED else ""
    which = f": {listing(apart[:LISTED])}{more}" if apart else ""
    return f"{verb} told apart at 5% after correction{which}"


def _ways(test: ExchangeTest) -> str:
    return f"all {test.arrangements} ways" if test.method == "exact" else f"{test.arrangements} random ways"


def _p(test: ExchangeTest) -> str:
    return f"p = {number(test.p_value, 2)}, corrected {number(test.p_holm, 2)}"


def _pair(test: ExchangeTest, labels: Sequence[str]) -> str:
    other = "the population" if test.against is None else labels[test.against]
    return f"{labels[test.row]} against {other}"


def permutation_limits(comparison: Comparison) -> list[str]:
    """What a permutation test does not say."""
    found = comparison.permutations
    sentences = []
    if found is not None and found.texts:
        sentences.append(
            "Exchanging texts asks whether two given models shape these texts differently. Two seeds of one "
            "architecture are two functions, and enough texts tell them apart too: whether training made a difference "
            "is asked of a population of models (--population)."
        )
    if found is not None and found.population:
        smallest = min((test.units for test in found.population if test.units), default=0)
        if smallest:
            sentences.append(
                f"A model's p-value among a population is its rank: with {smallest - 1} members it is "
                f"{number(1 / smallest, 2)} at least."
            )
    return sentences


def permutation_tables(comparison: Comparison, labels: Sequence[str]) -> list[Table]:
    """The tests as a whole, then the corrected p-value of every layer in each of them."""
    found = comparison.permutations
    if found is None:
        return []
    tables = []
    for title, tests in (
        ("Permutation tests by texts", found.texts),
        ("Permutation tests of each layer against the next", found.consecutive),
        ("Permutation tests among the population", found.population),
    ):
        tables += [_tests_table(title, tests, labels), _layers_table(title, tests, labels)] if tests else []
    return [table for table in tables if table.rows]


def _tests_table(title: str, tests: Sequence[ExchangeTest], labels: Sequence[str]) -> Table:
    columns = (
        Column("analysis", numeric=False),
        Column("against", numeric=False),
        Column("p", "corrected for the layers of the test"),
        Column("p, corrected", "for all tests too (Holm 1979)"),
        Column("layer", "with the smallest p", numeric=False),
        Column("arrangements"),
        Column("remark", numeric=False, prose=True),
    )
    rows = []
    for test in tests:
        least = min(test.layers, key=lambda layer: (layer.p_joint, layer.p_value), default=None)
        rows.append(
            (
                labels[test.row],
                "population"
                if test.against is None
                else labels[test.against]
                if test.against != test.row
                else "itself",
                number(test.p_value, 2),
                number(test.p_holm, 2),
                clean(least.layer, 40) if least else DASH,
                f"{test.arrangements:,}" if test.arrangements else DASH,
                clean(test.reason, 200) or test.method,
            )
        )
    return Table(title, columns, tuple(rows))


def _layers_table(title: str, tests: Sequence[ExchangeTest], labels: Sequence[str]) -> Table:
    shown = [test for test in tests if test.layers][:LISTED]
    names = list(dict.fromkeys(layer.layer for test in shown for layer in test.layers))[:MOST_LAYERS]
    values = [{layer.layer: layer for layer in test.layers} for test in shown]
    heads = (Column(f"{labels[test.row]}, {what}") for test in shown for what in ("p", "corrected"))
    rows = tuple(
        (
            clean(name, 60),
            *(number(getattr(value.get(name), key, None), 2) for value in values for key in ("p_value", "p_joint")),
        )
        for name in names
    )
    note = "Corrected for all layers of a test by the largest standardised statistic (Westfall, Young 1993)."
    return Table(f"{title}, layer by layer", (Column("layer", numeric=False), *heads), rows, note)


def cross_sentences(comparison: Comparison, labels: Sequence[str]) -> list[str]:
    """Whether equal depths of two models are each other's nearest."""
    return [_diagonal(one, labels) for one in comparison.cross if one.values]


def _diagonal(one: CrossLayers, labels: Sequence[str]) -> str:
    same = sum(name == match for name, match in zip(one.layers, one.matched, strict=True))
    return (
        f"Of {count(len(one.layers), 'layer')} of {labels[one.row]}, {same} {'is' if same == 1 else 'are'} most like "
        f"the layer of the same name of {labels[one.against]} ({clean(one.measure, 40)})."
    )


def p_summary(found: PermutationReport) -> list[tuple[str, str]]:
    """(kind, smallest corrected p-value or the reason why there is none), for short summaries."""
    kinds = (
        ("by texts", found.texts, found.p_texts, found.reason_texts),
        ("among the population", found.population, found.p_population, found.reason_population),
    )
    return [(kind, number(p, 2) if p is not None else clean(reason, 120)) for kind, tests, p, reason in kinds if tests]
