"""The picture of a training run: losses, learning rate, exactness between blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cohomcli.report.names import number
from cohomcli.report.picture import Picture
from cohomcli.report.style import INK, MODELS, MUTED, Frame, new_figure
from cohomcli.report.training.part import MEASURES
from cohomcli.training.results import Record, TrainingResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TERMS = {"lm": "training", "exact": "exact-sequence", "spectral": "spectral-sequence"}
Series = tuple[str, Sequence[int], Sequence[float]]


def training_pictures(result: TrainingResult, subject: str, prefix: str) -> list[Picture]:
    """One figure of the run; its file name starts with `prefix`."""
    caption = (
        "Left: cross-entropy in nats per predicted token. Then the weighted structural terms where there are any, the "
        "learning rate, and the exactness of the maps between neighbouring blocks, measured at every evaluation."
    )
    losses = f"{number(result.initial_loss)} at the start, {number(result.loss)} at the end"
    alt = f"Loss curves of {subject}: held-out loss {losses}."
    return [Picture(f"{prefix}training.png", "training", "Training", alt, caption, lambda: draw(subject, result))]


def draw(title: str, result: TrainingResult) -> Figure:
    """Panels side by side: the losses, then what else was recorded."""
    panels = _panels(result.history)
    columns = min(len(panels), 3)
    figure, axes = new_figure(title, (-(-len(panels) // columns), columns), (3.1, 2.1), Frame())
    for ax, (heading, series) in zip(axes, panels, strict=False):
        _panel(ax, heading, series)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return figure


def _panels(history: Sequence[Record]) -> list[tuple[str, list[Series]]]:
    loss = [_series(history, "training", _term("lm")), _series(history, "held-out", lambda record: record.eval_loss)]
    terms = sorted({name for record in history for name in record.terms} - {"lm"})
    structural = [_series(history, _TERMS.get(name, name), _term(name)) for name in terms]
    measured = [name for name in ("complex_defect", "homology_defect", "free_share") if _has(history, name)]
    tracked = [name for name in ("expansion_scale_free", "h1_over_scale") if _has(history, name)]
    return [
        ("Loss (nats per token)", loss),
        *([("Structural terms, weighted", structural)] if structural else []),
        ("Learning rate", [_series(history, "", lambda record: record.learning_rate)]),
        *([("Exactness between blocks", [_measure(history, name) for name in measured])] if measured else []),
        *([("Topology of the blocks", [_measure(history, name) for name in tracked])] if tracked else []),
    ]


def _term(name: str) -> Callable[[Record], float | None]:
    return lambda record: record.terms.get(name)


def _has(history: Sequence[Record], name: str) -> bool:
    return any(name in record.measures for record in history)


def _measure(history: Sequence[Record], name: str) -> Series:
    return _series(history, MEASURES[name], lambda record: record.measures.get(name))


def _series(history: Sequence[Record], label: str, value: Callable[[Record], float | None]) -> Series:
    found = [(record.step, at) for record in history if (at := value(record)) is not None]
    return label, [step for step, _ in found], [at for _, at in found]


def _panel(axes: Axes, heading: str, series: Sequence[Series]) -> None:
    axes.set_title(heading)
    axes.set_xlabel("step", labelpad=2)
    for at, (label, steps, values) in enumerate(series):
        dense = len(steps) > 40
        colour = MUTED if label == "training" else MODELS[at % len(MODELS)] if label else INK
        axes.plot(steps, values, color=colour, label=label or None, marker=None if dense else "o", ms=3, lw=1.4)
    if any(label for label, _, _ in series):
        axes.legend(frameon=False, fontsize=7.5, handlelength=1.4)
    if "Exactness" in heading:
        axes.set_ylim(0, 1)
