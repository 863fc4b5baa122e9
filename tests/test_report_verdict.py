"""JUnit, SARIF and the GitHub summary: what they say, that readers accept them, and that names do nothing in them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt
from sampleresults import HOSTILE_NAMES, entry, failed_entry, hostile_entry, info

from cohomcli.gates import check_gates, parse_gate
from cohomcli.report import github, junit, sarif
from cohomcli.report.verdict import Verdict
from cohomcli.topology.comparison import compare
from cohomcli.topology.drift import LayerDrift, ModelDrift, drift_report

DOCUMENT = {"a": {"b": 0.5, "name": "x<y & [z](http://evil.example) {0} `c` | d"}}
GATES = check_gates([parse_gate(text) for text in ("a.b > 0.1", "a.b > 0.9", "a.c > 1", 'a.name != "x"')], DOCUMENT)
VERDICT = Verdict("compare", "0.1.0", (entry(), failed_entry()), GATES)
HOSTILE = Verdict(
    HOSTILE_NAMES[0],
    "0.1.0",
    (hostile_entry(), *(replace(failed_entry(), model=name, error=name) for name in HOSTILE_NAMES)),
    (*GATES, *(replace(GATES[0], text=name, message=name, path=name) for name in HOSTILE_NAMES)),
)

# Jenkins' junit-10.xsd as far as we use it: element -> (attributes, of which required, children).
COUNTS = {"name", "tests", "failures", "errors"}
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({*COUNTS, "time"}, set(), {"testsuite"}),
    "testsuite": ({*COUNTS, "time", "skipped", "timestamp", "hostname", "id", "package"}, COUNTS, {"testcase"}),
    "testcase": ({"name", "time", "classname", "group"}, {"name"}, {"error", "failure"}),
    "failure": ({"type", "message"}, set(), set()),
    "error": ({"type", "message"}, set(), set()),
}


def check_junit(element: ET.Element) -> None:
    allowed, required, children = SCHEMA[element.tag]
    assert required <= element.attrib.keys() <= allowed
    for child in element:
        assert child.tag in children
        check_junit(child)


@pytest.mark.parametrize("verdict", [VERDICT, HOSTILE, Verdict("run", "0.1.0", (), ())])
def test_junit_is_well_formed_and_counts_what_it_holds(verdict: Verdict) -> None:
    text = junit.render(verdict)
    root = ET.fromstring(text.encode())
    check_junit(root)
    for suite in (root, *root):
        assert int(suite.get("tests", "-1")) == len(suite.findall(".//testcase"))
        assert int(suite.get("failures", "-1")) == len(suite.findall(".//failure"))
        assert int(suite.get("errors", "-1")) == len(suite.findall(".//error"))
    assert text == junit.render(verdict)


def test_junit_has_a_case_for_every_gate_and_analysis() -> None:
    gates, analyses = ET.fromstring(junit.render(VERDICT).encode())
    found = {case.get("name"): [child.tag for child in case] for case in gates}
    assert found == {"a.b > 0.1": ["failure"], "a.b > 0.9": [], "a.c > 1": ["error"], 'a.name != "x"': ["failure"]}
    assert gates.find("testcase/failure").get("message") == "gate 'a.b > 0.1': a.b is 0.5"  # type: ignore[union-attr]
    assert [len(case) for case in analyses] == [0, 1]
    assert "has no config.json" in (analyses[1][0].text or "")


def test_names_reach_junit_as_text_of_one_line() -> None:
    root = ET.fromstring(junit.render(HOSTILE).encode())
    names = [case.get("name", "") for case in root.iter("testcase")]
    assert "<script>alert('x')</script> on builtin" in names
    assert not [name for name in names if re.search(r"[\x00-\x1f\x7f\u202e\ud800-\udfff]", name)]


# The part of the SARIF 2.1.0 schema that we use: object -> (property -> type or nested object), required properties.
MESSAGE = ({"text": str}, {"text"})
SARIF: dict[str, Any] = {
    "log": ({"$schema": str, "version": str, "runs": ["run"]}, {"version", "runs"}),
    "run": (
        {"tool": "tool", "automationDetails": "id", "invocations": ["invocation"], "results": ["result"]},
        {"tool"},
    ),
    "tool": ({"driver": "driver"}, {"driver"}),
    "driver": ({"name": str, "semanticVersion": str, "rules": ["rule"]}, {"name"}),
    "id": ({"id": str}, set()),
    "rule": (
        {
            "id": str,
            "name": str,
            "shortDescription": "message",
            "fullDescription": "message",
            "defaultConfiguration": "configuration",
        },
        {"id"},
    ),
    "configuration": ({"level": str}, set()),
    "message": MESSAGE,
    "invocation": ({"executionSuccessful": bool, "toolExecutionNotifications": ["note"]}, {"executionSuccessful"}),
    "note": ({"level": str, "message": "message"}, {"message"}),
    "result": (
        {
            "ruleId": str,
            "ruleIndex": int,
            "kind": str,
            "level": str,
            "message": "message",
            "locations": ["location"],
            "partialFingerprints": dict,
        },
        {"message"},
    ),
    "location": ({"physicalLocation": "place", "logicalLocations": ["logical"]}, set()),
    "place": ({"artifactLocation": "artifact", "region": "region"}, {"artifactLocation"}),
    "artifact": ({"uri": str}, set()),
    "region": ({"startLine": int}, set()),
    "logical": ({"fullyQualifiedName": str, "kind": str}, set()),
}


def check_sarif(value: Any, kind: Any) -> None:
    if isinstance(kind, list):
        assert isinstance(value, list)
        for item in value:
            check_sarif(item, kind[0])
    elif isinstance(kind, str):
        properties, required = SARIF[kind]
        assert required <= value.keys() <= properties.keys()
        for key, inner in value.items():
            check_sarif(inner, properties[key])
    else:
        assert type(value) is kind


@pytest.mark.parametrize("verdict", [VERDICT, HOSTILE, Verdict("run", "0.1.0", (), ())])
def test_sarif_has_the_structure_of_the_standard(verdict: Verdict) -> None:
    document = json.loads(sarif.render(verdict))
    check_sarif(document, "log")
    (run,) = document["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert (result["kind"], result["level"]) == ("fail", "error")
        assert not re.search(r"(?<!\{)\{\d+\}(?!\})|\]\(", result["message"]["text"])


def test_sarif_shows_tripped_gates_and_knows_them_again() -> None:
    (run,) = json.loads(sarif.render(VERDICT))["runs"]
    assert [rule["shortDescription"]["text"] for rule in run["tool"]["driver"]["rules"]] == [g.text for g in GATES]
    assert [result["ruleIndex"] for result in run["results"]] == [0, 2, 3]
    assert run["results"][0]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "a.b"
    assert run["invocations"][0]["executionSuccessful"] is False
    later = replace(VERDICT, entries=(), gates=(replace(GATES[0], found=0.7, message="other"),))
    (again,) = json.loads(sarif.render(later))["runs"]
    assert again["results"][0]["partialFingerprints"] == run["results"][0]["partialFingerprints"]


def test_the_summary_names_what_tripped_and_what_failed() -> None:
    text = github.render(VERDICT)
    assert text.startswith("## cohom compare: 1 analysis failed, 3 gates of 4 tripped\n")
    assert "| TRIPPED | a.b \\> 0.1 | a.b is 0.5 |" in text
    assert "| passes | a.b \\> 0.9 |" in text
    assert "| UNKNOWN METRIC | a.c \\> 1 |" in text
    assert "failed: models/broken has no config.json" in text


def test_no_name_makes_markup_in_the_summary() -> None:
    mention = replace(failed_entry(), model="@everyone", error="ask @octocat")
    text = github.render(replace(HOSTILE, entries=(*HOSTILE.entries, mention)))
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert set(re.findall(r"<([a-z0-9]+)", html)) <= {"h2", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert not re.search(r"@\w", html)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4, 5}


def test_the_summary_shows_drift_by_model_and_the_worst_layers() -> None:
    entries = [entry(name, info=replace(info(name), weights_sha256=name)) for name in ("old", "new")]
    layers = tuple(LayerDrift(f"layer_{k}", k / 100) for k in range(20))
    model = ModelDrift(1, 0, layers, 0.19, 0.095, "layer_19")
    empty = drift_report([], [], [], "cka-debiased")
    drift = replace(empty, baselines=(0,), models=(model,), max_drift=0.19, mean_drift=0.095)
    text = github.render(Verdict("compare", "0.1.0", tuple(entries), (), replace(compare(entries), drift=drift)))
    assert "### Drift from old" in text
    assert "| new | 0.19 | layer\\_19 | 0.095 |  |" in text or "| new | 0.19 | layer_19 | 0.095 |  |" in text
    assert "| layer_19 | 0.19 |" in text
    assert "layer_5 " not in text
