"""Bring a hub model into the local cache as a plain folder; from there on nothing needs the network."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cohomcli.errors import AnalysisIncomplete, InputRefused
from cohomcli.hubaccess import endpoint, http_error, with_retries
from cohomcli.models.presets import PRESETS
from cohomcli.models.spec import LoadOptions
from cohomcli.models.wording import first_line
from cohomcli.registry import did_you_mean

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
_OFFLINE = ("1", "ON", "YES", "TRUE")


class _Unreachable(InputRefused):
    """The hub did not answer: the cache may still hold the model."""


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


def is_offline() -> bool:
    """Whether the environment forbids the network (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`)."""
    return any(os.environ.get(name, "").upper() in _OFFLINE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


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
    except _Unreachable:
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

    known = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, http_error())
    try:
        yield
    except known as error:
        raise _explain(hub_id, options, error) from error
    except errors.HFValidationError as error:
        raise InputRefused(f"{hub_id!r} is not a hub id", "it has the form org/name") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AnalysisIncomplete(f"disk full while downloading {hub_id!r}", "free space or set HF_HOME") from error
        raise InputRefused(
            f"the download of {hub_id!r} did not finish: {first_line(error)}", "run the command again, it resumes"
        ) from error


def _explain(hub_id: str, options: LoadOptions, error: Exception) -> InputRefused:
    from huggingface_hub import errors

    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return InputRefused(f"{hub_id!r} is gated", f"accept its licence at {endpoint()}/{hub_id} and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return InputRefused(f"the hub has no model {hub_id!r} (or it is private)", _check_the_id(hub_id))
    if isinstance(error, errors.RevisionNotFoundError):
        return InputRefused(f"{hub_id!r} has no revision {options.revision!r}", "check --revision")
    if is_offline() or isinstance(error, errors.OfflineModeIsEnabled):
        return InputRefused(
            f"{hub_id!r} is not in the local cache and HF_HUB_OFFLINE is set",
            "unset it once to download, or give a folder",
        )
    if status is not None:
        return InputRefused(f"the hub answered {status} for {hub_id!r}", "try again later, or give a local folder")
    if type(error).__name__ in ("ReadError", "RemoteProtocolError", "WriteError", "CloseError"):
        return InputRefused(
            f"the connection to the hub breaks off while downloading {hub_id!r}",
            "run the command again: it goes on where it stopped",
        )
    return _Unreachable(
        f"cannot reach the hub for {hub_id!r}", f"check the network ({endpoint()}), or give a local folder"
    )


def _check_the_id(hub_id: str) -> str:
    hint = did_you_mean(hub_id.rpartition("/")[2].lower(), PRESETS)
    return f"{hint if hint.startswith('did') else 'check the spelling (org/name);'} a private model needs HF_TOKEN"
