"""Gates: what they read, when they trip, and that they fail closed."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohomcli.errors import UsageError
from cohomcli.gates import check_gates, parse_gate

DOCUMENT = {
    "status": "ok",
    "precision": {
        "measured_error": 0.004,
        "met": True,
        "norm": "rel-l2",
        "gap": None,
        "plan": [{"share": 0.1}, {"share": 0.7}],
    },
}
COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def _trips(text: str, document: dict[str, object] = DOCUMENT) -> bool:
    (outcome,) = check_gates([parse_gate(text)], document)
    return outcome.tripped


@pytest.mark.parametrize(
    ("text", "tripped"),
    [
        ("precision.measured_error > 0.01", False),
        ("precision.measured_error>1e-3", True),
        ("precision.met == false", False),
        ("precision.met != true", False),
        ("precision.met == true", True),
        ("precision.norm != rel-l2", False),
        ('precision.norm == "rel-l2"', True),
        ("precision.plan[0].share > 0.5", False),
        ("precision.plan[1].share > 0.5", True),
        ("precision.plan[*].share > 0.5", True),
        ("precision.plan[*].share > 0.8", False),
    ],
)
def test_a_gate_trips_when_its_condition_holds(text: str, tripped: bool) -> None:
    assert _trips(text) is tripped


@pytest.mark.parametrize(
    "text",
    [
        "precision.mesured_error > 0.01",  # misspelt
        "precision.gap > 0.5",  # null
        "precision.plan[7].share > 2",  # beyond the end
        "precision.norm > 1",  # a string
        "precision.met == 1",  # a truth value is no number
        "precision.norm == true",
        "precision > 1",
        "metrics.perplexity > 100",
    ],
)
def test_what_cannot_be_checked_trips(text: str) -> None:
    assert _trips(text)


@pytest.mark.parametrize(
    ("text", "unknown", "says"),
    [
        ("precision.mesured_error > 0.01", True, "did you mean precision.measured_error"),
        ("precison.measured_error > 0.01", True, "did you mean precision.measured_error"),
        ("nonsense > 1", True, "results.json lists what there is"),
        ("topology.layers.max_drift > 0.1", False, "no 'topology.layers.max_drift'"),  # a section of another command
        ("metrics.perplexity > 100", False, "no 'metrics.perplexity'"),
        ("precision.plan[7].share > 2", False, "no 'precision.plan[7].share'"),
        ("precision.plan[1].shre > 2", True, "precision.plan[*].share"),
        ("precision.gap > 0.5", False, "precision.gap is absent (no bound was found)"),
        ("precision.gap.relative > 0.5", False, "no 'precision.gap.relative'"),
        ("precision.met.really > 0.5", True, "unknown metric"),
    ],
)
def test_what_is_misspelt_is_told_apart_from_what_is_absent(text: str, unknown: bool, says: str) -> None:
    document = {**DOCUMENT, "precision": {**DOCUMENT["precision"], "reason": "no bound was found"}}
    (outcome,) = check_gates([parse_gate(text)], document)
    assert (outcome.tripped, outcome.unknown) == (True, unknown)
    assert says in outcome.message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None, "0", True, [], {}])
@pytest.mark.parametrize("text", ["x.y > 0.1", "x.y < 0.1", "x.y == 0.1", "x.y != 0.1"])
def test_nothing_but_a_finite_number_passes_a_numeric_gate(text: str, value: object) -> None:
    assert _trips(text, {"x": {"y": value}})


def test_a_failed_analysis_trips_with_its_reason_and_is_not_called_a_misspelling() -> None:
    good = {"status": "ok", "topology": {"layers": [{"name": "a", "scale": 1.0}]}}
    failed = {"status": "failed", "error": "no such folder"}
    (outcome,) = check_gates([parse_gate("topology.layers[*].scale > 2")], {"models": [good, failed]})
    assert (outcome.tripped, outcome.unknown) == (True, False)
    assert "no such folder" in outcome.message
    (outcome,) = check_gates([parse_gate("topology.layers[*].skale > 2")], {"models": [good, good]})
    assert outcome.unknown
    assert "did you mean topology.layers[*].scale" in outcome.message


def test_several_models_are_checked_each_and_none_may_lack_the_key() -> None:
    models = {"models": [{"metrics": {"perplexity": 5.0}}, {"metrics": {"perplexity": 9.0}}]}
    assert not _trips("metrics.perplexity > 10", models)
    assert _trips("metrics.perplexity > 8", models)
    assert not _trips("models[0].metrics.perplexity > 8", models)
    models["models"].append({"metrics": {}})
    assert _trips("metrics.perplexity > 10", models)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "precision",
        "a >",
        "> 3",
        "a => 3",
        "a.b > high",
        "a..b > 1",
        "a[x] > 1",
        "a b > 1",
        "a > nan",
        "a > NaN",
        "a < 1e999",
        "a == -Infinity",
        "__import__('os') > 1",
        "a" * 600 + " > 1",
    ],
)
def test_what_is_no_gate_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gate(text)


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(sorted(COMPARE)),
)
def test_numbers_compare_as_python_compares_them(left: float, right: float, comparison: str) -> None:
    assert _trips(f"x.y {comparison} {right!r}", {"x": {"y": left}}) is COMPARE[comparison](left, right)
