"""Gates and analyses as JUnit XML, which CI servers show as tests: a tripped gate fails, a failed analysis is an error.

The elements and attributes are those that Jenkins, GitLab and GitHub's actions read (Jenkins xUnit plug-in,
junit-10.xsd). Times are left out: a gate takes none, and equal results give equal files.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree import ElementTree as ET

from cohomcli.gates import GateOutcome
from cohomcli.report.names import clean
from cohomcli.report.verdict import Verdict, subject
from cohomcli.results import Entry


def render(verdict: Verdict) -> str:
    """The whole file. Names are stripped of what XML cannot hold and escaped by the writer."""
    root = ET.Element("testsuites", name=f"cohom {clean(verdict.command, 40)}")
    _suite(root, "gates", [_gate(gate) for gate in verdict.gates])
    _suite(root, "analyses", [_analysis(entry) for entry in verdict.entries])
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ET.indent(root)
    return f"<?xml version='1.0' encoding='UTF-8'?>\n{ET.tostring(root, encoding='unicode')}\n"


def _suite(root: ET.Element, name: str, cases: Iterable[ET.Element]) -> None:
    suite = ET.SubElement(root, "testsuite", name=name)
    suite.extend(cases)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))


def _gate(gate: GateOutcome) -> ET.Element:
    case = ET.Element("testcase", classname="cohom.gates", name=clean(gate.text, 200))
    if gate.tripped:
        _problem(case, "error" if gate.unknown else "failure", "UnknownMetric" if gate.unknown else "GateTripped", gate)
    return case


def _problem(case: ET.Element, tag: str, kind: str, gate: GateOutcome) -> None:
    message = clean(gate.message, 600)
    ET.SubElement(case, tag, type=kind, message=message).text = message


def _analysis(entry: Entry) -> ET.Element:
    case = ET.Element("testcase", classname="cohom.analyses", name=subject(entry))
    if entry.error:
        message = clean(entry.error, 600)
        ET.SubElement(case, "error", type="AnalysisFailed", message=message).text = message
    return case
