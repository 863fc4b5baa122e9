"""Checks certificates: reads one, verifies its digest and hashes, and recomputes what it claims."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohomcli.errors import CohomError
from cohomcli.verify.document import Context, Memory, Rejected, Unreadable, digest, read_document
from cohomcli.verify.enclose import Progress, silent
from cohomcli.verify.kinds import KINDS


@dataclass(frozen=True)
class Verdict:
    """What a check found: `state` is verified, rejected or unreadable, `reason` says why it is not verified.

    `kind`, `status` and `statement` are the certificate's own where it could be read; the statement of a certificate
    that is not verified is not to be believed.
    """

    path: Path
    state: str
    reason: str = ""
    kind: str = ""
    status: str = ""
    statement: str = ""


def verify(path: Path, progress: Progress = silent, memory: Memory | None = None) -> Verdict:
    """Check one certificate file; never raises for what the file holds.

    Certificates that are checked with one `memory`, one after the other, share the enclosure of the same outputs.

    `verified` means: the digest and all hashes hold, the claim was recomputed here and found true, and the statement
    is the sentence that the claim means.
    """
    document: dict[str, Any] = {}
    try:
        document = read_document(path)
        _check(Context(document, path.parent, progress, memory or Memory()))
    except Unreadable as error:
        return _verdict(path, "unreadable", document, str(error))
    except Rejected as error:
        return _verdict(path, "rejected", document, str(error))
    except CohomError as error:
        return _verdict(path, "rejected", document, error.message)
    # A forged document can have anything anywhere: whatever that breaks in the checker is a rejection, not a crash.
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
        return _verdict(path, "rejected", document, f"malformed: {type(error).__name__}: {str(error)[:120]}")
    except OSError as error:
        return _verdict(path, "unreadable", document, str(error))
    return _verdict(path, "verified", document, "")


def _check(context: Context) -> None:
    document = context.document
    if digest(document) != document["digest"]:
        raise Rejected("the digest does not fit the contents")
    if not isinstance(document["kind"], str) or document["kind"] not in KINDS:
        raise Rejected(f"unknown kind {document['kind']!r}")
    kind = KINDS.get(document["kind"])
    if document["status"] != kind.status:
        raise Rejected(f"the status {document['status']!r} is not {kind.status!r}")
    if set(document["claim"]) != kind.keys:
        raise Rejected("the claim has not the keys of its kind")
    if set(document["evaluation"]) != {"precision"}:
        raise Rejected("the evaluation has not its keys")
    if set(document["model"]) != {"name", "graph", "weights"}:
        raise Rejected("the model has not its keys")
    if kind.statement(document) != document["statement"]:
        raise Rejected("the statement is not the sentence that the claim means")
    kind.check(context)
    unread = [name for name in document["tensors"] if name not in context.read]
    if unread:
        raise Rejected(f"tensor {unread[0]!r} plays no part in the claim")


def _verdict(path: Path, state: str, document: dict[str, Any], reason: str) -> Verdict:
    text = {key: str(document.get(key, "")) for key in ("kind", "status", "statement")}
    return Verdict(path, state, " ".join(reason.split()), **text)
