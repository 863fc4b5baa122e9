"""An audit hook that ends the process when the code under test runs something or touches a file outside its folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

RUNS = {"exec", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn", "ctypes.dlopen"}
REACHES = {"socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"}
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.symlink", "os.link", "shutil.rmtree"}


class Watch:
    """While `armed`, no code may run, no socket open, and no file outside `folder` be opened or changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve()) + os.sep
        self.armed = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in REACHES or (event in RUNS and not _import(event, arguments)):
            self._stop(event, arguments)
        if event in CHANGES or event == "open":
            self._path(event, arguments)

    def _path(self, event: str, arguments: tuple[Any, ...]) -> None:
        if isinstance(arguments[0], int):  # a descriptor that is open already
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - no links followed: the name asked for counts
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not path.startswith(self.folder) and not (reads and _harmless(path)):
            self._stop(event, arguments)

    def _stop(self, event: str, arguments: tuple[Any, ...]) -> None:
        self.armed = False
        print(f"==ESCAPE== {event} {arguments!r}"[:600], file=sys.stderr, flush=True)
        os.abort()  # libFuzzer keeps the input that led here


def _harmless(path: str) -> bool:
    """What any process may read: modules that are loaded late, and how much memory is free."""
    modules = path.endswith((".py", ".pyc", ".so")) or path.startswith(sys.base_prefix)
    return modules or path.startswith(("/proc/meminfo", "/sys/fs/cgroup"))


def _import(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether this is the body of an installed module that is loaded late, such as a codec."""
    code = arguments[0]
    return event == "exec" and code.co_name == "<module>" and code.co_filename.startswith((sys.base_prefix, sys.prefix))
