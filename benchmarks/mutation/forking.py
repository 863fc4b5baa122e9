"""Run tests on a changed file in a forked process: libraries are loaded once, the code under test anew."""

from __future__ import annotations

import compileall
import io
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest

PACKAGE = "cohomcli"
LIBRARIES = (
    "torch", "transformers", "transformers.models.gpt2.modeling_gpt2", "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama", "torch.export", "accelerate", "pandas", "pydantic", "typer",
    "rich.table", "matplotlib.pyplot", "scipy.stats", "scipy.spatial", "scipy.sparse.csgraph", "scipy.optimize",
    "sklearn.decomposition", "ripser", "persim", "redzed_tda", "hypothesis", "joblib", "safetensors.torch", "jinja2",
)  # fmt: skip
_MOMENTS = count(1)


@dataclass(frozen=True)
class Ended:
    """What became of the tests: `passed`, `failed` (with the first failure) or `timeout`, and CPU seconds."""

    outcome: str
    detail: str
    seconds: float


def preload(tree: Path) -> None:
    """Load the libraries, and have the package come from `tree`."""
    import torch

    torch.set_num_threads(1)
    for name in LIBRARIES:
        with suppress(ImportError):
            import_module(name)
    compileall.compile_dir(tree / PACKAGE, quiet=1)
    sys.dont_write_bytecode = False  # compiled tests are kept between processes
    assert not any(name.startswith(PACKAGE) for name in sys.modules), "the package must be loaded after the fork"
    sys.path[:0] = [str(tree), str(tree / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(tree), str(tree / "tests")])


@contextmanager
def written(file: Path, source: str) -> Iterator[None]:
    """`file` holds `source` for a while; its time of change is like no other, so no compiled file is taken for it."""
    keep = file.with_suffix(".original")
    shutil.copy2(file, keep)
    moment = file.stat().st_mtime + 10 * next(_MOMENTS)
    try:
        file.write_text(source, "utf-8")
        os.utime(file, (moment, moment))
        yield
    finally:
        keep.replace(file)


class _First:
    """A pytest plugin that keeps the first failure, and spares the search for the smallest one."""

    failure = ""

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        settings.register_profile("mutation", settings(), phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failure:
            self.failure = f"{report.nodeid}: {_last_line(report.longreprtext)}"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failure:
            self.failure = f"{report.nodeid}: {_last_line(report.longreprtext)}"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("E ")] or text.splitlines()[-1:]
    return lines[0][1:].strip()[:200] if lines else ""


def run(tree: Path, tests: Sequence[str], limit: float) -> Ended:
    """Run `tests` in `tree` until the first failure or for `limit` CPU seconds (and ten times as long by the clock)."""
    scratch = Path(os.environ.get("TMPDIR", "/tmp")) / f"cohom-mutation-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    child = os.fork()
    if not child:
        os.setsid()
        _child(tree, tests, limit, scratch)
    begun, ended, status, usage = time.monotonic(), 0, 0, None
    while not ended:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if time.monotonic() - begun > 10 * limit:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests left running
    assert usage is not None
    report = scratch / "report.json"
    detail = json.loads(report.read_text()) if report.exists() else ""
    code = os.waitstatus_to_exitcode(status)
    shutil.rmtree(scratch, ignore_errors=True)
    outcome = {0: "passed", -signal.SIGXCPU: "timeout", -signal.SIGKILL: "timeout"}.get(code, "failed")
    return Ended(outcome, detail or f"exit code {code}", usage.ru_utime + usage.ru_stime)


def _child(tree: Path, tests: Sequence[str], limit: float, scratch: Path) -> None:
    """Never returns."""
    code = 3
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 5))
        os.chdir(tree)
        with (scratch / "output").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.stdin = io.StringIO()
        first = _First()
        arguments = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={scratch / 'temp'}", *tests]
        code = int(pytest.main(arguments, plugins=[first]))
        module = sys.modules.get(PACKAGE)
        if module is not None and not str(module.__file__).startswith(str(tree)):
            code, first.failure = 70, f"{module.__file__} was tested instead of the copy"
        (scratch / "report.json").write_text(json.dumps(first.failure))
    finally:
        os._exit(code)
