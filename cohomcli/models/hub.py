"""Bring a hub model into the local cache as a plain folder; from there on nothing needs the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from cohomcli.errors import InputRefused
from cohomcli.hubaccess import HubUnreachable, endpoint, explain, http_error, is_offline, with_retries
from cohomcli.models.presets import PRESETS
from cohomcli.models.spec import LoadOptions
from cohomcli.names import printable
from cohomcli.registry import did_you_mean

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")


def fetch(hub_id: str, options: LoadOptions, weights: bool = True) -> Path:
    """The local snapshot folder of `hub_id`, downloaded or completed first unless it is already in the cache.

    Only the files a model needs are fetched: settings, tokenizer, one format of the weights (safetensors when there
    is one), and Python files only with `trust_remote_code`. A broken download resumes.

    Raises:
        InputRefused: offline and not cached, unreachable, unknown id or revision, gated, broken off, no weights.
        AnalysisIncomplete: the disk is full.
    """
    from huggingface_hub import snapshot_download

    patterns = [*_SMALL_FILES, *(("*.py",) if options.trust_remote_code else ())]
    if weights:
        patterns += _weight_patterns(hub_id, options)
    with _one_line_errors(hub_id, options):
        folder = with_retries(
            lambda: snapshot_download(
                hub_id,
                revision=options.revision,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
                local_files_only=is_offline(),
                endpoint=endpoint(),
            )
        )
    return Path(folder)


def remote_weights(hub_id: str, options: LoadOptions) -> dict[str, int]:
    """File name -> bytes of the weights `fetch` would download; empty when offline, where only the cache is known."""
    if is_offline():
        return {}
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    sizes = {}
    for name in weight_files(_remote_names(hub_id, options)):
        with _one_line_errors(hub_id, options):
            url = hf_hub_url(hub_id, name, revision=options.revision, endpoint=endpoint())
            sizes[name] = get_hf_file_metadata(url, endpoint=endpoint()).size or 0
    return sizes


def weight_files(names: Iterable[str]) -> list[str]:
    """Which of a repository's files are the weights to load: whole or sharded safetensors, else torch files."""
    known = sorted(names)
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"):
        found = [name for name in known if fnmatch(name, pattern)]
        if found:
            return found
    return []


def _remote_names(hub_id: str, options: LoadOptions) -> list[str]:
    """The files in the repository's top folder."""
    from huggingface_hub import HfApi

    with _one_line_errors(hub_id, options):
        # model_info and not list_repo_tree: the latter retries for 24 s before it admits that nobody answers
        info = HfApi(endpoint=endpoint()).model_info(hub_id, revision=options.revision)
    return [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]


def _weight_patterns(hub_id: str, options: LoadOptions) -> list[str]:
    if is_offline():
        return []  # the cache is taken as it is; `read_folder` says what it lacks
    try:
        names = _remote_names(hub_id, options)
    except HubUnreachable:
        return []
    found = weight_files(names)
    if found:
        return found
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if ggufs:
        raise InputRefused(f"{hub_id!r} has only GGUF files", f"download one (e.g. {ggufs[0]}) and give its path")
    raise InputRefused(f"{hub_id!r} has no weights", "it must hold model.safetensors or pytorch_model.bin")


@contextmanager
def _one_line_errors(hub_id: str, options: LoadOptions) -> Iterator[None]:
    """Turn what the hub client raises into our one-line errors."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise InputRefused(f"{hub_id!r} is not a hub id", "it has the form org/name") from error
    except (OSError, http_error()) as error:
        at = f" at revision {printable(repr(options.revision))}" if options.revision else ""
        found = explain(error, f"model {hub_id!r}{at}")
        near = did_you_mean(hub_id.rpartition("/")[2].lower(), PRESETS)
        if isinstance(error, errors.RepositoryNotFoundError) and near.startswith("did"):
            found.hint = f"{near} {found.hint}"
        raise found from error
