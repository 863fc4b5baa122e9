"""A small hub on 127.0.0.1 that speaks as much of the Hugging Face protocol as the client libraries ask for.

`HubServer(root)` serves `root/models/<org>/<name>/**` and `root/datasets/<org>/<name>/**`, one commit (`main`) each;
`root/revisions/<revision>/{models,datasets}/<org>/<name>/**` are further revisions of them.
What huggingface_hub 2 and datasets 5 were seen to request, and hence what is here:

* `GET /api/{models,datasets}/<id>[/revision/<rev>]`: existence, commit (`sha`), list of files (`siblings`);
* `GET .../tree/<rev>[/<folder>]` and `POST .../paths-info/<rev>`: names, sizes and git ids, for globbing data files;
* `HEAD` and `GET [/datasets]/<id>/resolve/<rev>/<file>`: metadata headers, then the bytes, `Range` respected.

Xet, the hub's chunked transfer, is asked for only when a `HEAD` answer carries `X-Xet-Hash` or a tree entry `xetHash`;
neither is sent here, so `hf_xet` stays idle even where it is installed and every download is plain HTTP.
`cut_once` makes one download break off in the middle, and `log` tells what was asked.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

LFS_THRESHOLD = 1 << 20
CutHow = Literal["close", "reset"]


@dataclass(frozen=True)
class Exchange:
    """One answered request: `sent` counts body bytes, `cut` says whether the connection was broken on purpose."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int
    cut: bool


@dataclass
class Repo:
    """A folder served as a repository with a single commit."""

    folder: Path

    @cached_property
    def files(self) -> dict[str, Path]:
        """Path inside the repository -> file."""
        return {p.relative_to(self.folder).as_posix(): p for p in sorted(self.folder.rglob("*")) if p.is_file()}

    @cached_property
    def digests(self) -> dict[str, tuple[str, str]]:
        """Path -> (git blob id, SHA-256)."""
        return {name: _digests(path.read_bytes()) for name, path in self.files.items()}

    @cached_property
    def commit(self) -> str:
        """A 40-digit id that changes with the content."""
        return hashlib.sha1(json.dumps(self.digests).encode()).hexdigest()

    def is_lfs(self, name: str) -> bool:
        """The hub keeps big files in LFS storage, and names them by SHA-256 in the ETag."""
        return self.files[name].stat().st_size >= LFS_THRESHOLD

    def tree(self, under: str, recursive: bool) -> list[dict[str, Any]]:
        """The entries of folder `under` ("" is the root)."""
        prefix = f"{under.strip('/')}/" if under.strip("/") else ""
        inside = [name for name in self.files if name.startswith(prefix)]
        folders = {prefix + name.removeprefix(prefix).split("/")[0] for name in inside if "/" in name[len(prefix) :]}
        entries = [{"type": "directory", "path": path, "size": 0, "oid": self.commit} for path in sorted(folders)]
        return entries + [self.entry(name) for name in inside if recursive or "/" not in name[len(prefix) :]]

    def entry(self, name: str) -> dict[str, Any]:
        """One file as the tree and paths-info answers describe it."""
        git_id, sha256 = self.digests[name]
        size = self.files[name].stat().st_size
        lfs = {"lfs": {"oid": sha256, "size": size, "pointerSize": 134}} if self.is_lfs(name) else {}
        return {"type": "file", "path": name, "size": size, "oid": git_id, **lfs}


def _digests(data: bytes) -> tuple[str, str]:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()


@dataclass
class HubServer:
    """The server; use it as a context manager. `gated` holds ids that exist but want a login."""

    root: Path
    gated: set[str] = field(default_factory=set)
    log: list[Exchange] = field(default_factory=list)
    _cuts: dict[str, tuple[int, CutHow]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """What `HF_ENDPOINT` is to be set to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def cut_once(self, filename: str, after: int, how: CutHow = "close") -> None:
        """Break the next download of `filename` after `after` body bytes: a clean close (FIN) or a reset (RST)."""
        self._cuts[filename] = (after, how)

    def take_cut(self, filename: str) -> tuple[int, CutHow] | None:
        """The cut planned for a download of `filename`, which is thereby used up."""
        with self._lock:
            return self._cuts.pop(filename, None)

    def downloads(self, filename: str) -> list[Exchange]:
        """The GET requests for `filename`, in order."""
        return [e for e in self.log if e.method == "GET" and e.path.endswith(f"/{filename}")]

    def repo(self, kind: str, repo_id: str) -> Repo | None:
        """The repository `repo_id` of `kind` ("models" or "datasets"), read anew so that tests may change it."""
        folder = self.root / kind / repo_id
        return Repo(folder) if folder.is_dir() and ".." not in repo_id else None

    def revisions(self, kind: str, repo_id: str) -> dict[str, Repo]:
        """Every revision of a repository by name, `main` first; empty when there is no such repository."""
        main = self.repo(kind, repo_id)
        if main is None:
            return {}
        others = sorted((self.root / "revisions").glob(f"*/{kind}/{repo_id}"))
        depth = len(Path(kind, repo_id).parts)
        return {"main": main} | {folder.parents[depth - 1].name: Repo(folder) for folder in others}

    def commit(self, kind: str, repo_id: str) -> str:
        """The commit of a repository's `main`."""
        return Repo(self.root / kind / repo_id).commit


class _Handler(BaseHTTPRequestHandler):
    """Routes one request; every answer goes through `_answer`, which writes the log."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are kept in `HubServer.log`."""

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in ("models", "datasets"):
            self._api(parts[1], "/".join(parts[2:4]), parts[4:])
        elif parts[0] == "datasets" and len(parts) >= 6 and parts[3] == "resolve":
            self._resolve("datasets", "/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._resolve("models", "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._error(404, "RepoNotFound", "Repository not found")

    do_HEAD = do_GET
    do_POST = do_GET

    def _api(self, kind: str, repo_id: str, rest: list[str]) -> None:
        repo = self._find(kind, repo_id, rest[1] if len(rest) > 1 else "main")
        if repo is None:
            return
        route, folder = rest[0] if rest else "revision", "/".join(rest[2:])
        if route == "revision":
            siblings = [{"rfilename": name} for name in repo.files]
            self._json({"id": repo_id, "sha": repo.commit, "private": False, "tags": [], "siblings": siblings})
        elif route == "tree" and (not folder or any(name.startswith(f"{folder}/") for name in repo.files)):
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            self._json(repo.tree(folder, recursive))
        elif route == "paths-info":
            wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["paths"]
            self._json([repo.entry(name) for name in wanted if name in repo.files])
        else:
            self._error(404, "EntryNotFound", "Entry not found")

    def _resolve(self, kind: str, repo_id: str, revision: str, name: str) -> None:
        repo = self._find(kind, repo_id, revision)
        if repo is None:
            return
        if name not in repo.files:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repo.commit})
            return
        git_id, sha256 = repo.digests[name]
        body = repo.files[name].read_bytes()
        headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        headers["ETag"] = f'"{sha256 if repo.is_lfs(name) else git_id}"'
        if repo.is_lfs(name):
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(body))}
        start = self._range_start(len(body))
        if start >= len(body) > 0:
            self._error(416, "RangeNotSatisfiable", "Range not satisfiable", {"Content-Range": f"bytes */{len(body)}"})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        cut = self.hub.take_cut(name) if self.command == "GET" else None
        self._answer(206 if start else 200, body[start:], headers, cut)

    def _find(self, kind: str, repo_id: str, revision: str) -> Repo | None:
        """The repository at `revision`, or None after the error answer has been sent."""
        revisions = self.hub.revisions(kind, repo_id)
        if not revisions:
            # The true hub answers 401 to strangers, so as not to tell missing from private repositories.
            self._error(401, "RepoNotFound", "Repository not found")
        elif repo_id in self.hub.gated:
            self._error(401, "GatedRepo", f"Access to {repo_id} is restricted")
        elif found := [repo for name, repo in revisions.items() if revision in (name, repo.commit)]:
            return found[0]
        else:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _range_start(self, size: int) -> int:
        """First byte asked for by a `bytes=k-` header; other forms are not used by the clients."""
        asked = self.headers.get("Range", "")
        start = asked.removeprefix("bytes=").split("-")[0] if asked.startswith("bytes=") else ""
        return min(int(start), size) if start.isdigit() else 0

    def _json(self, document: Any) -> None:
        self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        fields = {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"}
        self._answer(status, json.dumps({"error": message}).encode(), fields | (headers or {}))

    def _answer(self, status: int, body: bytes, headers: dict[str, str], cut: tuple[int, CutHow] | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = 0 if self.command == "HEAD" else len(body) if cut is None else min(cut[0], len(body))
        exchange = Exchange(
            self.command, urlsplit(self.path).path, self.headers.get("Range"), status, sent, cut is not None
        )
        self.hub.log.append(exchange)
        self.wfile.write(body[:sent])
        if cut is not None:
            self._break_off(cut[1])

    def _break_off(self, how: CutHow) -> None:
        """End the connection in the middle of a body."""
        self.close_connection = True
        self.wfile.flush()
        if how == "reset":
            # Lingering for zero seconds makes close() send RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
