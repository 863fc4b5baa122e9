"""The run folder: claimed under a unique name, filled in a staging place, renamed into view when it is whole."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import secrets
import shutil
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from cohomcli import __version__
from cohomcli.errors import InputRefused, UsageError
from cohomcli.names import safe_name
from cohomcli.runs.files import read_json, sha256_file, to_json, write_atomic, writing

PARTIAL = ".partial"
LATEST = "latest"
_PACKAGES = ("torch", "transformers", "datasets", "numpy", "scipy", "ripser", "redzed-tda", "safetensors")
logger = logging.getLogger("cohomcli")


class RunFolder:
    """One run's folder. Use as a context manager: leaving it normally publishes the folder, an exception does not.

    While the command works, everything lies in `<parent>/.partial/<name>/`, which is also what `--resume` continues;
    `publish` renames it to `<parent>/<name>/` and swaps `<parent>/latest`. A reader never sees half a run.
    """

    def __init__(self, parent: Path, name: str, manifest: dict[str, Any]) -> None:
        self.parent = parent
        self.name = name
        self.manifest = manifest
        self._log: logging.Handler | None = None
        self._held: int | None = None

    @classmethod
    def create(
        cls, parent: Path, command: str, label: str, argv: list[str], name: str | None = None, config: str = ""
    ) -> RunFolder:
        """Claim a new folder `<utc>-<command>-<label>-<rand>` (or `<utc>-<name>-<rand>`) under `parent`.

        `config` is the text of its config.yaml. It is there before the manifest, which makes a run one to resume.
        """
        middle = safe_name(name) if name else f"{command}-{safe_name(label)}"
        started = datetime.now(UTC)
        full = f"{started:%Y%m%dT%H%M%SZ}-{middle}-{secrets.token_hex(3)}"
        manifest = {
            "schema": "cohom.manifest/1",
            "command": command,
            "argv": argv,
            "status": "running",
            "pid": os.getpid(),
            "started": started.isoformat(timespec="microseconds"),
            "stages": [],
            "versions": _versions(),
            "platform": platform.platform(),
        }
        run = cls(parent, full, manifest)
        with writing(run.stage):
            run.stage.mkdir(parents=True, exist_ok=False)
        run._hold()
        try:
            if config:
                run.write("config.yaml", config)
            run._write_manifest()
        except BaseException:
            run._abandon()
            raise
        return run

    @classmethod
    def reopen(cls, parent: Path, name: str, argv: list[str], command: str) -> RunFolder:
        """Continue an interrupted run of `command`: `name`, a path to it, or `latest` for the newest one.

        Raises:
            InputRefused: there is no such interrupted run.
            UsageError: it is still running, or it began with another command.
        """
        stages = interrupted(parent)
        if name == LATEST:
            stages = [stage for stage in stages if read_json(stage / "manifest.json").get("command") == command]
        stage = stages[-1] if name == LATEST and stages else parent / PARTIAL / Path(name).name
        if stage not in stages:
            known = ", ".join(path.name for path in stages) or "none"
            raise InputRefused(f"no interrupted run {name!r} under {str(parent)!r}", f"interrupted runs: {known}")
        manifest = read_json(stage / "manifest.json")
        if manifest.get("command") != command:
            raise UsageError(
                f"run {stage.name!r} began with {str(manifest.get('command'))!r}", "resume it with that command"
            )
        run = cls(parent, stage.name, manifest)
        if not run._hold():
            raise UsageError(f"run {stage.name!r} is still going on (process {manifest.get('pid')})")
        _sweep(stage)
        manifest |= {"status": "running", "pid": os.getpid(), "resumed": [*manifest.get("resumed", []), argv]}
        run._write_manifest()
        return run

    @property
    def stage(self) -> Path:
        """Where the run is being written."""
        return self.parent / PARTIAL / self.name

    @property
    def final(self) -> Path:
        """Where it will be once published."""
        return self.parent / self.name

    def __enter__(self) -> RunFolder:
        with writing(self.stage):
            self._log = logging.FileHandler(self.stage / "log.txt", encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(self._log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            # for log.txt: on stderr the entry point prints this line
            logger.info("%s: %s", "interrupted" if not isinstance(error, Exception) else "failed", error)
        if self._log is not None:
            logger.removeHandler(self._log)
            self._log.close()
        if error is None:
            self.publish()
        elif isinstance(error, Exception) and not self.manifest["stages"]:
            # Nothing worth resuming was finished: leave no litter behind.
            self._abandon()
        else:
            self._close("interrupted" if not isinstance(error, Exception) else "failed")

    def finish_stage(self, stage: str, seconds: float) -> None:
        """Record that `stage` is complete on disk, so that `--resume` need not repeat it."""
        self.manifest["stages"].append({"name": stage, "seconds": round(seconds, 3)})
        self._write_manifest()

    def has_stage(self, stage: str) -> bool:
        """Whether an earlier attempt finished `stage`."""
        return any(done["name"] == stage for done in self.manifest["stages"])

    def path(self, relative: str) -> Path:
        """A path inside the folder being written; its parent exists."""
        target = self.stage / relative
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def write(self, relative: str, data: bytes | str) -> None:
        """Write one file whole."""
        write_atomic(self.stage / relative, data)

    def publish(self) -> None:
        """Hash the outputs, mark the manifest complete, rename the folder into view and swap `latest`."""
        files = sorted(path for path in self.stage.rglob("*") if path.is_file() and path.name != "manifest.json")
        # log.txt differs from run to run and is no result.
        self.manifest["outputs"] = {
            path.relative_to(self.stage).as_posix(): sha256_file(path) for path in files if path.name != "log.txt"
        }
        self._close("complete")
        with writing(self.final):
            self.stage.rename(self.final)
            _swap_link(self.parent / LATEST, self.name)
        _remove_if_empty(self.parent / PARTIAL)

    def _close(self, status: str) -> None:
        self.manifest["status"] = status
        self.manifest["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.manifest.pop("pid", None)
        self._write_manifest()
        self._release()

    def _abandon(self) -> None:
        shutil.rmtree(self.stage, ignore_errors=True)
        self._release()
        _remove_if_empty(self.stage.parent)

    def _hold(self) -> bool:
        """Lock the staging folder until this process closes the run or dies; False when another process holds it.

        A process id would not do: after a crash the system may give it to somebody else.
        """
        self._held = os.open(self.stage, os.O_RDONLY)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            return False
        except OSError:  # some network file systems have no locks; then nobody can say, and we go on
            return True
        return True

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _write_manifest(self) -> None:
        self.write("manifest.json", to_json(self.manifest))


def interrupted(parent: Path) -> list[Path]:
    """Staging folders under `parent` that hold a manifest, oldest first."""
    folder = parent / PARTIAL
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(path for path in found if (path / "manifest.json").is_file())


def published(parent: Path) -> list[Path]:
    """Finished run folders under `parent`, oldest first by name, which begins with the time.

    Runs of one second are ordered by the start that their manifests record.
    """
    found = parent.iterdir() if parent.is_dir() else iter(())
    runs = [path for path in found if not path.is_symlink() and (path / "results.json").is_file()]
    return sorted(runs, key=lambda path: (path.name[: len("20260101T000000Z")], _started(path), path.name))


def _started(run: Path) -> str:
    """When the run in folder `run` began, as its manifest says; empty if it cannot say."""
    try:
        return str(json.loads((run / "manifest.json").read_text(encoding="utf-8"))["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _versions() -> dict[str, str]:
    found = {"cohom": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _swap_link(link: Path, target: str) -> None:
    """Point `link` to `target` in one step, so that it never points nowhere; a real folder of that name stays."""
    if link.exists() and not link.is_symlink():
        return
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(3)}")
    temporary.symlink_to(target)
    temporary.replace(link)


def _sweep(stage: Path) -> None:
    """Remove the temporary files that a killed process was writing; see `write_whole`."""
    for path in stage.rglob(".*"):
        if path.is_file():
            path.unlink()


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
