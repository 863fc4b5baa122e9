"""The log of a training: one line of JSON for every record, and TensorBoard's files where they are wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cohomcli.errors import UsageError
from cohomcli.training.results import Record

LOG = "artifacts/history.jsonl"


@contextmanager
def history(stage: Path | None, tensorboard: bool, resumed: bool) -> Iterator[Any]:
    """A function that writes every record as a line of JSON into `stage` (None: nowhere), and to TensorBoard too.

    Raises:
        UsageError: TensorBoard is asked for and not installed.
    """
    if stage is None:
        yield lambda record: None
        return
    board = _tensorboard(stage) if tensorboard else None
    path = stage / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if resumed else "w", encoding="utf-8") as stream:

        def record(one: Record) -> None:
            stream.write(json.dumps(_flat(one), sort_keys=True) + "\n")
            stream.flush()
            if board:
                for name, value in _flat(one).items():
                    board.add_scalar(name, value, one.step)

        yield record
    if board:
        board.close()


def _flat(record: Record) -> dict[str, float]:
    found: dict[str, float] = {"step": record.step, "learning_rate": record.learning_rate}
    found |= {f"train/{name}": value for name, value in record.terms.items()}
    found |= {f"eval/{name}": value for name, value in record.measures.items()}
    return found | ({"eval/loss": record.eval_loss} if record.eval_loss is not None else {})


def _tensorboard(stage: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs the package tensorboard", "pip install tensorboard") from error
    return SummaryWriter(str(stage / "tensorboard"))
