"""The job behind `cohom verify`: every certificate named, or found in a named folder, is checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohomcli.errors import EXIT_GATE, EXIT_INPUT, EXIT_OK, InputRefused
from cohomcli.progress import Progress
from cohomcli.verify.arrays import flint
from cohomcli.verify.checker import Verdict, verify
from cohomcli.verify.document import SCHEMA, Memory


@dataclass(frozen=True)
class Verified:
    """The verdicts in the order asked for; `exit_code` 3 when one is unreadable, else 1 when one is rejected."""

    verdicts: tuple[Verdict, ...]

    @property
    def exit_code(self) -> int:
        """0, 1 or 3."""
        states = {verdict.state for verdict in self.verdicts}
        return EXIT_INPUT if "unreadable" in states else EXIT_GATE if "rejected" in states else EXIT_OK

    @property
    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "command": "verify",
            "status": "ok" if self.exit_code == EXIT_OK else "failed",
            "certificates": [
                {
                    "file": str(v.path),
                    "state": v.state,
                    "reason": v.reason,
                    "kind": v.kind,
                    "status": v.status,
                    "statement": v.statement,
                }
                for v in self.verdicts
            ],
        }


def verify_all(paths: Sequence[Path], progress: Progress) -> Verified:
    """Check every file; of a folder all certificates in and below it.

    Raises:
        InputRefused: a folder without a certificate.
        AnalysisIncomplete: python-flint is not installed.
    """
    flint()
    memory = Memory()
    return Verified(tuple(verify(file, progress, memory) for path in paths for file in _files(path)))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*.json") if _is_certificate(file))
    if not found:
        raise InputRefused(f"{str(path)!r} holds no certificate", "give a folder of certificates, or files")
    return found


def _is_certificate(file: Path) -> bool:
    """Whether a JSON file names our schema; what is damaged beyond that is found by its name in the run's results."""
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("schema") == SCHEMA
