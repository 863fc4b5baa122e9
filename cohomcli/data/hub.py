"""Data sets of the Hugging Face hub, read with the `datasets` library, which since its version 4 runs no scripts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from cohomcli.data.fields import choose_field
from cohomcli.data.files import HASH_SPLITS
from cohomcli.data.layout import HEAD_LINES, detect
from cohomcli.data.spec import DatasetSpec, HashSplit, TextSource
from cohomcli.errors import InputRefused, UsageError
from cohomcli.hubaccess import explain, http_error, with_retries
from cohomcli.names import printable, safe_name
from cohomcli.registry import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w][\w.-]*", re.ASCII)
# With nothing said: what is kept for evaluation, as far as there is such a split.
DEFAULT_SPLITS = ("test", "validation", "train")
STRINGS = ("string", "large_string")
BATCH_ROWS = 1_000
TIMEOUT = 20.0  # seconds


@dataclass(frozen=True)
class HubRequest:
    """What to read: one text of a row is its `fields` joined by line breaks; no fields means: choose one."""

    name: str
    repo_id: str
    config: str | None = None
    split: str | None = None
    fields: tuple[str, ...] = ()
    revision: str | None = None

    @property
    def what(self) -> str:
        """How messages call it."""
        at = f" at revision {printable(repr(self.revision))}" if self.revision else ""
        return f"data set {printable(repr(self.repo_id))}{at}"


# A preset, and the splits that `calibration` and `heldout` stand for.
PRESETS = {
    "wikitext2": (
        HubRequest("wikitext2", "Salesforce/wikitext", "wikitext-2-raw-v1", "test", ("text",)),
        {"calibration": "validation", "heldout": "test"},
    ),
    "squad": (
        HubRequest("squad", "rajpurkar/squad_v2", None, "validation", ("question", "context")),
        {"calibration": "train", "heldout": "validation"},
    ),
}


def is_hub_id(reference: str) -> bool:
    """Whether `reference` has the form `org/name`."""
    return HUB_ID.fullmatch(reference) is not None


def request_of(spec: DatasetSpec) -> HubRequest:
    """What a preset or a hub id stands for; the options of `spec` win over those of the preset.

    Raises:
        UsageError: `spec.unit` is set, which is for plain text.
    """
    if spec.unit != "auto":
        raise UsageError(f"--unit {spec.unit} is for plain text files, and {printable(spec.reference)} has rows")
    preset, split_names = PRESETS.get(spec.reference, (HubRequest(spec.reference, spec.reference), {}))
    split = spec.split or preset.split
    return HubRequest(
        name=safe_name("-".join(filter(None, [preset.name, spec.config]))),
        repo_id=preset.repo_id,
        config=spec.config or preset.config,
        split=split_names.get(split, split) if split else None,
        fields=(spec.field,) if spec.field else preset.fields,
        revision=spec.revision,
    )


def open_hub(request: HubRequest) -> TextSource:
    """Download a data set, or take it from the cache, and open one split of it.

    Raises:
        InputRefused: offline, unreachable, missing, gated, broken off, or not readable as a table.
        UsageError: no such configuration, split or field.
        AnalysisIncomplete: the disk is full.
    """
    commit = _commit(request)
    _quieten()
    builder = _prepared_builder(request, commit)
    split, hash_split = _choose_split(request, builder.info.splits or ())
    rows = builder.as_dataset(split=split)
    fields = _choose_fields(request, rows)
    head = islice(_row_texts(rows, fields), HEAD_LINES)
    return TextSource(
        name=request.name,
        source=f"{request.repo_id}, configuration {builder.config.name}, commit {builder.hash}",
        split=f"{split}/{hash_split}" if hash_split else split,
        unit="row",
        texts=_row_texts(rows, fields),
        hash_split=hash_split,
        headings=detect(list(head)).headings,
        field="+".join(fields),
    )


def _quieten() -> None:
    """No progress bars into logs and pipes; the variables of the libraries switch them off on a terminal."""
    if not sys.stderr.isatty():
        import datasets
        from huggingface_hub.utils.tqdm import disable_progress_bars

        datasets.disable_progress_bars()
        disable_progress_bars()


def _commit(request: HubRequest) -> str | None:
    """The commit that the revision stands for now, None offline.

    Asked before anything else: it tells at once when the hub is down or the id wrong, which the download would retry
    for half a minute, and with a commit given `datasets` asks no further servers.
    """
    from huggingface_hub import HfApi, is_offline_mode

    if is_offline_mode():
        return None
    try:
        info = with_retries(
            lambda: HfApi().dataset_info(request.repo_id, revision=request.revision, timeout=TIMEOUT),
        )
    except (OSError, ValueError, http_error()) as error:
        raise explain(error, request.what) from error
    return str(info.sha)


def _prepared_builder(request: HubRequest, commit: str | None) -> DatasetBuilder:
    """The data set downloaded and converted; its `hash` is the commit."""
    from datasets.exceptions import DatasetsError

    try:
        builder = _builder(request, commit)
        if builder.config.data_files:
            _choose_split(request, builder.config.data_files)  # a misspelt split costs no download
        with_retries(builder.download_and_prepare)
    except (OSError, ValueError, RuntimeError, DatasetsError, http_error()) as error:
        raise explain(error, request.what) from error
    return builder


def _builder(request: HubRequest, commit: str | None) -> DatasetBuilder:
    """The builder at `commit`; offline (None) the one in the cache.

    `hf://` keeps a local folder called `org/name` from being taken for the data set.
    """
    from datasets import get_dataset_config_names, load_dataset_builder

    path = f"hf://datasets/{request.repo_id}"
    try:
        builder = with_retries(lambda: load_dataset_builder(path, request.config, revision=commit))
    except ValueError as error:
        if commit is None:
            raise
        known = get_dataset_config_names(path, revision=commit)
        if request.config in known:
            raise
        raise _no_config(request, known) from error
    if commit is None and request.revision not in (None, builder.hash):
        found = f"{request.what} is not in the local cache (commit {builder.hash} is) and HF_HUB_OFFLINE is set"
        raise InputRefused(found, "unset HF_HUB_OFFLINE to download it")
    return cast("DatasetBuilder", builder)


def _no_config(request: HubRequest, known: list[str]) -> UsageError:
    if request.config is None:
        listed = printable(", ".join(known))
        return UsageError(f"{request.what} has several configurations: {listed}", "choose one with --dataset-config")
    missing = f"{request.what} has no configuration {printable(repr(request.config))}"
    return UsageError(missing, printable(did_you_mean(request.config, known)))


def _choose_split(request: HubRequest, names: Iterable[object]) -> tuple[str, HashSplit | None]:
    """The split to read, and which half of it by hash; a split of its own name wins over a half."""
    known = [str(name) for name in names]  # `datasets` has a class for them
    wanted = request.split
    if wanted in known:
        return wanted, None
    if wanted is not None and wanted not in HASH_SPLITS:
        missing = f"{request.what} has no split {printable(repr(wanted))}"
        raise UsageError(missing, printable(did_you_mean(wanted, known)))
    default = next((split for split in DEFAULT_SPLITS if split in known), known[0] if len(known) == 1 else None)
    if default is None:
        raise UsageError(f"{request.what} has the splits {printable(', '.join(known))}", "choose one with --split")
    return default, cast("HashSplit | None", wanted)


def _choose_fields(request: HubRequest, rows: Dataset) -> tuple[str, ...]:
    columns = {name: getattr(feature, "dtype", "") in STRINGS for name, feature in rows.features.items()}
    fields = request.fields or (choose_field(columns, None, request.what),)
    for name in fields:
        if not columns[choose_field(columns, name, request.what)]:
            listed = ", ".join(column for column, is_string in columns.items() if is_string)
            hint = f"columns of texts: {printable(listed) or 'none'}"
            raise UsageError(f"column {printable(repr(name))} of {request.what} holds no strings", hint)
    return fields


def _row_texts(rows: Dataset, fields: tuple[str, ...]) -> Iterator[str]:
    """One text a row; a null counts as empty."""
    for batch in rows.select_columns(list(fields)).iter(batch_size=BATCH_ROWS):
        columns: list[list[Any]] = [batch[name] for name in fields]
        for values in zip(*columns, strict=True):
            yield "\n".join(value or "" for value in values)
