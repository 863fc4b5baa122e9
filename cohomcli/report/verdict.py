"""What a pipeline wants to know of a command: which gates tripped, which analyses failed, how far layers drifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cohomcli.gates import GateOutcome
from cohomcli.report.names import clean
from cohomcli.results import Entry

if TYPE_CHECKING:
    from cohomcli.topology.comparison import Comparison


@dataclass(frozen=True)
class Verdict:
    """The outcome of one command, as JUnit, SARIF and the GitHub summary show it. `version` is cohom's."""

    command: str
    version: str
    entries: tuple[Entry, ...]
    gates: tuple[GateOutcome, ...]
    comparison: Comparison | None = None

    @property
    def failed(self) -> tuple[Entry, ...]:
        """The analyses that could not be finished."""
        return tuple(entry for entry in self.entries if entry.error)

    @property
    def tripped(self) -> tuple[GateOutcome, ...]:
        """The gates that tripped, unknown metrics among them."""
        return tuple(gate for gate in self.gates if gate.tripped)


def subject(entry: Entry) -> str:
    """An entry's name on one line."""
    name = f"{entry.model} on {entry.dataset}" if entry.dataset else entry.model
    return clean(name, 120)
