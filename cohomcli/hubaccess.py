"""Talking to the Hugging Face hub: a bounded retry of broken downloads, and one clear line for every failure.

huggingface_hub resumes a download itself when the connection is closed early, from the last whole 10 MiB. It does not
when the connection is reset (TCP RST), and the error then ends the call; `with_retries` covers that case. Failures
are recognised along the chain of causes, since transformers and datasets wrap them.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from cohomcli.errors import AnalysisIncomplete, CohomError, InputRefused
from cohomcli.names import printable

T = TypeVar("T")

_SET = ("1", "ON", "YES", "TRUE")
ATTEMPTS = 4
FIRST_PAUSE = 1.0  # seconds, doubled each time
# Class names, because huggingface_hub has moved from httpx to httpx2, and both may be installed.
BROKEN_OFF = {"ReadError", "RemoteProtocolError", "ReadTimeout", "WriteError"}
UNREACHABLE = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}


class HubUnreachable(InputRefused):
    """The hub did not answer: the cache may still hold what was wanted."""


def is_offline() -> bool:
    """Whether the environment forbids the network (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`), now or at the start."""
    from huggingface_hub import is_offline_mode

    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return is_offline_mode() or any(os.environ.get(name, "").upper() in _SET for name in names)


def with_retries(action: Callable[[], T], pause: float = FIRST_PAUSE) -> T:
    """Call `action`, again when the connection broke off, at most four times with pauses of 1, 2 and 4 seconds.

    What was downloaded completely is in the cache and is not fetched again.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except Exception as error:
            if not any(_is_a(cause, BROKEN_OFF) for cause in causes(error)):
                raise
            time.sleep(pause * 2**attempt)
    return action()


def explain(error: BaseException, what: str) -> CohomError:
    """The one line for a failed access to `what`, such as "model 'org/name'" or "data set 'org/name'".

    A full disk gives `AnalysisIncomplete`, everything else `InputRefused`, a hub that does not answer its subclass
    `HubUnreachable`.
    """
    chain = list(causes(error))
    for found in (_full_disk, _offline, _refused_by_hub, _connection):
        if line := found(chain, what):
            return line
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    # The first line says what is wrong; the rest of such messages is advice to programmers.
    text = str(root).strip() or type(root).__name__
    return InputRefused(f"cannot load {what}: {printable(text.splitlines()[0])}")


def causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, what caused it, what caused that, and so on."""
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def http_error() -> type[Exception]:
    """The base class of the HTTP library's errors, whichever of httpx and httpx2 huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")


def endpoint() -> str:
    """The address of the hub in use: `HF_ENDPOINT`, or the client's own default."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)).rstrip("/")


def _is_a(error: BaseException, names: set[str]) -> bool:
    return any(base.__name__ in names for base in type(error).__mro__)


def _full_disk(chain: list[BaseException], what: str) -> CohomError | None:
    if any(isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) for error in chain):
        return AnalysisIncomplete(f"the disk is full: {what} could not be stored", "free space or set HF_HOME")
    return None


def _offline(chain: list[BaseException], what: str) -> CohomError | None:
    # These errors also follow a lost connection; only the setting tells the two apart.
    if is_offline() and any(_is_a(e, {"ConnectionError", "LocalEntryNotFoundError"}) for e in chain):
        hint = "unset HF_HUB_OFFLINE to download it, or give a local path"
        return InputRefused(f"{what} is not in the local cache and HF_HUB_OFFLINE is set", hint)
    return None


def _refused_by_hub(chain: list[BaseException], what: str) -> CohomError | None:
    """The answers of a hub that was reached."""
    from huggingface_hub import errors

    for error in chain:
        if isinstance(error, errors.GatedRepoError):
            hint = "accept its terms on its page, then log in with `hf auth login` or HF_TOKEN"
            return InputRefused(f"{what} is gated on the hub", hint)
        if isinstance(error, errors.RevisionNotFoundError):
            return InputRefused(f"the hub has no {what}", "check --revision")
        if isinstance(error, errors.RepositoryNotFoundError):
            hint = "check the id; a private one needs `hf auth login` or HF_TOKEN"
            return InputRefused(f"there is no {what} on the hub at {endpoint()}", hint)
        if isinstance(error, errors.HfHubHTTPError) and not isinstance(error, errors.EntryNotFoundError):
            status = error.response.status_code
            return InputRefused(f"the hub at {endpoint()} answered {status} for {what}", "try again later")
    return None


def _connection(chain: list[BaseException], what: str) -> CohomError | None:
    if any(_is_a(error, BROKEN_OFF) for error in chain):
        hint = "run the command again; complete files are kept"
        return InputRefused(f"the connection broke off {ATTEMPTS} times while downloading {what}", hint)
    if any(_is_a(error, UNREACHABLE | {"ConnectionError"}) for error in chain):
        hint = "check the network and HF_ENDPOINT, give a local path, or set HF_HUB_OFFLINE=1 to use a cached copy"
        return HubUnreachable(f"cannot reach the hub at {endpoint()} for {what}", hint)
    return None
