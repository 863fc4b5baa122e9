"""Reports whose figures are blank sheets: for tests of files, names and markup, which need no drawing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cohomcli.report import build
from cohomcli.report.picture import Picture
from cohomcli.results import Entry


def blank() -> Figure:
    """Two by one inches of nothing."""
    figure = Figure(figsize=(2, 1))
    FigureCanvasAgg(figure)
    return figure


def leave_figures_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `build` draw blank sheets under the real names, captions and descriptions."""
    real = build._pictures

    def pictures(entries: list[Entry]) -> list[list[Picture]]:
        return [[replace(picture, draw=blank) for picture in group] for group in real(entries)]

    monkeypatch.setattr(build, "_pictures", pictures)
