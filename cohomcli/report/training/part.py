"""The part of an entry that is about training: the losses, the curves, what the model writes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cohomcli.report.document import Column, Fact, Part, Table
from cohomcli.report.names import clean, count, number
from cohomcli.report.picture import Picture, in_groups
from cohomcli.training.results import Record, TrainingResult

_STOPPED = {
    "steps": "all steps were taken",
    "patience": "the loss did not get better for as many evaluations as were allowed",
    "time": "the time was up; --resume goes on",
}
MEASURES = {
    "complex_defect": "complex defect",
    "homology_defect": "homology defect",
    "free_share": "free share",
    "read_alignment": "read alignment",
    "expansion_scale_free": "scale-free expansion",
    "h1_over_scale": "H1 / scale",
}
_SHOWN = 24  # evaluations in the table; the log has them all


def training_part(result: TrainingResult, pictures: Sequence[Picture]) -> Part:
    """The section on training; `pictures` may hold others as well."""
    return Part(
        title="Training",
        headline=tuple(_headline(result)),
        seen=tuple(_seen(result)),
        overview=in_groups(pictures, "training"),
        limits=(
            "The loss is measured on held-out texts of the same data set; on other text the model does worse.",
            "One run with one seed: differences between runs that are smaller than those between seeds mean nothing.",
            "The exactness measures describe the maps between neighbouring blocks on eight held-out sequences. That a "
            "number moves does not say that it should.",
        ),
        notes=(),
        blocks=tuple(table for table in (_evaluations(result), _samples(result)) if table.rows),
    )


def _headline(result: TrainingResult) -> list[Fact]:
    best = f"best {number(result.best_loss)} at step {result.best_step:,}"
    return [
        Fact("held-out loss", number(result.loss), f"nats per predicted token; {best}"),
        Fact("perplexity", number(math.exp(min(result.loss, 700))), "exp of the loss"),
        Fact("before training", number(result.initial_loss), "the same measure at step 0"),
        Fact("steps", f"{result.steps:,}", _STOPPED.get(result.stopped, clean(result.stopped))),
        Fact("tokens", count(result.tokens, "predicted token"), "in training, repeated passes included"),
        Fact("parameters", f"{result.n_parameters:,}", ""),
    ]


def _seen(result: TrainingResult) -> list[str]:
    fell = result.initial_loss - result.loss
    sentences = [
        f"The held-out loss went from {number(result.initial_loss)} to {number(result.loss)} nats per token in "
        f"{result.steps:,} steps."
        if fell > 0
        else f"The held-out loss did not fall: {number(result.initial_loss)} before, {number(result.loss)} after."
    ]
    later = [record.eval_loss for record in result.history if record.eval_loss is not None]
    if len(later) > 2 and result.best_step < result.steps and later[-1] > 1.02 * result.best_loss:
        sentences.append(
            f"It was best at step {result.best_step:,} and rose by {number(later[-1] - result.best_loss)} after that: "
            "the model learns the training texts by heart."
        )
    first, last = (_measured(result.history, end) for end in (0, -1))
    for name in ("complex_defect", "homology_defect"):
        if name in first and name in last:
            sentences.append(
                f"The {MEASURES[name]} between blocks went from {number(first[name])} to {number(last[name])}."
            )
    return sentences


def _measured(history: Sequence[Record], end: int) -> dict[str, float]:
    found = [record.measures for record in history if record.measures]
    return dict(found[end]) if found else {}


def _evaluations(result: TrainingResult) -> Table:
    records = [record for record in result.history if record.eval_loss is not None]
    stride = max(1, -(-len(records) // _SHOWN))
    shown = [*records[:-1][::stride], *records[-1:]]
    measures = [name for name in MEASURES if any(name in record.measures for record in shown)]
    columns = (
        Column("step"),
        Column("loss", "nats per predicted token, held-out texts"),
        Column("learning rate"),
        *(Column(MEASURES[name], _meaning(name)) for name in measures),
    )
    rows = tuple(
        (
            f"{record.step:,}",
            number(record.eval_loss),
            number(record.learning_rate),
            *(number(record.measures.get(name)) for name in measures),
        )
        for record in shown
    )
    return Table("Evaluations", columns, rows, "every line of the log is in artifacts/history.jsonl")


def _meaning(name: str) -> str:
    return {
        "complex_defect": "kappa: mean sin^2 of the angles from what a block writes to what the next cannot see",
        "homology_defect": "eta: the share of what the next block cannot see that is not written",
        "free_share": "directions written that the next block never sees, of all written",
        "read_alignment": "1 at random, above 1 when the next block reads what is written",
        "expansion_scale_free": "peak H0 total over scale of the blocks, over the embedding's",
        "h1_over_scale": "mean over the blocks",
    }[name]


def _samples(result: TrainingResult) -> Table:
    columns = (Column("given", numeric=False, prose=True), Column("written", numeric=False, prose=True))
    rows = tuple((clean(sample.prompt, 300), clean(sample.text, 600)) for sample in result.samples)
    return Table("What it writes", columns, rows, "sampled from the model's own distribution after held-out words")
