"""Tripped gates as SARIF 2.1.0 (OASIS standard), which code-scanning services show as alerts.

Every gate is a rule; a tripped one is a result of level error, and a failed analysis a notification. Gates that pass
are rules without a result: services open an alert for every result, whatever its kind. Fingerprints and places do not
depend on the run folder, so an alert stays one alert from run to run.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from cohomcli.gates import GateOutcome
from cohomcli.report.names import clean
from cohomcli.report.verdict import Verdict, subject

VERSION = "2.1.0"
SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "cohomGate/v1"
PLACE = "results.json"


def render(verdict: Verdict) -> str:
    """The whole file: one run of one tool, strict JSON."""
    gates = list({gate.text: gate for gate in verdict.gates}.values())
    run = {
        "tool": {
            "driver": {
                "name": "cohom",
                "semanticVersion": clean(verdict.version, 40),
                "rules": [_rule(gate) for gate in gates],
            }
        },
        "automationDetails": {"id": f"cohom/{clean(verdict.command, 40)}/"},
        "invocations": [_invocation(verdict)],
        "results": [_result(gate, index) for index, gate in enumerate(gates) if gate.tripped],
    }
    document = {"$schema": SCHEMA, "version": VERSION, "runs": [run]}
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _identity(gate: GateOutcome) -> str:
    return f"gate-{sha256(gate.text.encode(errors='surrogatepass')).hexdigest()[:16]}"


def _rule(gate: GateOutcome) -> dict[str, Any]:
    text = clean(gate.text, 200)
    return {
        "id": _identity(gate),
        "name": "Gate",
        "shortDescription": {"text": _literal(text)},
        "fullDescription": {"text": _literal(f"The command fails when this holds: {text}")},
        "defaultConfiguration": {"level": "error"},
    }


def _result(gate: GateOutcome, index: int) -> dict[str, Any]:
    place: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": PLACE}, "region": {"startLine": 1}},
    }
    if gate.path:
        place["logicalLocations"] = [{"fullyQualifiedName": clean(gate.path, 200), "kind": "member"}]
    return {
        "ruleId": _identity(gate),
        "ruleIndex": index,
        "kind": "fail",
        "level": "error",
        "message": {"text": _literal(clean(gate.message, 600))},
        "locations": [place],
        "partialFingerprints": {FINGERPRINT: sha256(gate.text.encode(errors="surrogatepass")).hexdigest()},
    }


def _invocation(verdict: Verdict) -> dict[str, Any]:
    failures = [
        {"level": "error", "message": {"text": _literal(f"{subject(entry)}: {clean(entry.error, 600)}")}}
        for entry in verdict.failed
    ]
    return {"executionSuccessful": not failures, "toolExecutionNotifications": failures}


def _literal(text: str) -> str:
    """`text` in which no placeholder stands and no embedded link begins (SARIF 2.1.0, sections 3.11.5 and 3.11.6)."""
    return text.replace("{", "{{").replace("}", "}}").replace("](", "] (")
