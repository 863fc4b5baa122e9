"""What does `--dataset` mean? The built-in corpus, a preset, a local file or folder, or a hub data set."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from cohomcli.data.files import kind_by_suffix, open_files
from cohomcli.data.hub import PRESETS, is_hub_id, open_hub, request_of
from cohomcli.data.layout import Layout
from cohomcli.data.spec import DatasetSpec, TextSource
from cohomcli.data.textfile import read_texts
from cohomcli.errors import InputRefused, UsageError
from cohomcli.names import printable
from cohomcli.registry import did_you_mean

BUILTIN = "builtin"


def open_source(spec: DatasetSpec) -> TextSource:
    """Open the data set that `spec` names.

    `builtin` and the presets win over files of the same name (write `./name` for the file); anything that exists on
    disk or looks like a path is local; the rest must be a hub id, `org/name`.

    Raises:
        UsageError: an unknown name, or an option that does not fit the data set.
        InputRefused: missing or unreadable.
    """
    reference = spec.reference
    if reference == BUILTIN:
        return _open_builtin(spec)
    if reference in PRESETS:
        return open_hub(request_of(spec))
    if not reference.strip() or "\0" in reference:
        raise UsageError("no data set given", f"name {BUILTIN}, a preset, a path or a hub id")
    path = Path(reference).expanduser()
    if _exists(path):
        return open_files(spec, path)
    if _looks_local(reference):
        raise InputRefused(f"no such file or folder: {printable(reference)}")
    if is_hub_id(reference):
        return open_hub(request_of(spec))
    what = f"{printable(repr(reference))} is neither a file, a known data set nor a hub id (org/name)"
    raise UsageError(what, did_you_mean(reference, [BUILTIN, *PRESETS]))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # too long a name, no permission to look
        raise InputRefused(f"cannot read {printable(path)}: {error.strerror}") from error


def _looks_local(reference: str) -> bool:
    starts_like_a_path = reference.startswith(("/", "./", "../", "~")) or reference in (".", "..")
    return starts_like_a_path or reference.endswith(("/", ".gz")) or kind_by_suffix(Path(reference)) is not None


def _open_builtin(spec: DatasetSpec) -> TextSource:
    """The corpus of the package, of which `heldout` is the default split: no built-in model has seen it."""
    from cohomcli.assets import SPLITS, corpus_dir

    if spec.config is not None or spec.revision is not None or spec.field is not None or spec.unit != "auto":
        raise UsageError("the built-in corpus has no configurations, revisions, fields or other units")
    split = spec.split or "heldout"
    if split not in SPLITS:
        raise UsageError(f"the built-in corpus has no split {printable(repr(split))}", did_you_mean(split, SPLITS))
    passages = Layout("paragraph")
    texts = chain.from_iterable(read_texts(path, passages) for path in sorted(corpus_dir(split).glob("*.txt")))
    return TextSource(BUILTIN, BUILTIN, split, passages.unit, texts)
