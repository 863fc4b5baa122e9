"""Faults on the real commands: kills at random moments, full disks, damaged caches, crowds, and a clock that goes back.

    python -m benchmarks.faults                  # 100 seeded trials
    python -m benchmarks.faults --trials 12 --seed 7 --only kill

Every trial runs `cohom run`, `train` or `prune` on a small random model in a process of its own, does its harm, and
then looks at what is left:

- what stands in the output folder is a whole run: manifest `complete`, every file as its hash says, nothing temporary;
- an interrupted run goes on with `--resume latest`, and one without anything to resume is started again;
- the results are those of an undisturbed run, byte for byte;
- an exit is 0, the code the documents promise, or the signal's; stderr has one line for it and no traceback.

`kill` sends SIGKILL or SIGTERM at a moment drawn uniformly over the undisturbed run's time. `disk` limits the size of
files, so that a write fails as on a full disk. `cache` damages every cached file between two runs. `readonly` takes the
right to write from the output folder. `crowd` starts two equal runs on one output folder and one cache. `clock` sets
the clock back by a day in mid-run. Processes are forked from one that has torch loaded, which saves seconds in each and
changes nothing else. Prints one JSON object; exit code 1 when any trial failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143}
PARTIAL, LATEST = ".partial", "latest"
COMMANDS = {
    "run": "run -m {model} -m {other} -d {texts} --samples 8 --max-length 24 --null none --no-precision",
    "train": "train -m {model} -d {texts} --max-steps 12 --save-steps 4 --eval-steps 6 --block-size 16 --batch-size 2",
    "prune": "prune -m {model} -d {texts} --method wanda --calibration-tokens 256 --eval-tokens 256 --block-size 16",
}
Harm = Callable[[], None]


class Broken(AssertionError):
    """A promise that a trial found broken."""


@dataclass(frozen=True)
class Finished:
    """How one process ended; `code` is negative for a signal."""

    code: int
    err: str
    seconds: float


@dataclass
class World:
    """What all trials share: models, one undisturbed run of every command, and its time."""

    root: Path
    inputs: dict[str, str]
    results: dict[str, bytes] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def arguments(self, command: str, out: Path) -> list[str]:
        """The command line of `command` into the output folder `out`."""
        return [
            *(word.format(**self.inputs) for word in COMMANDS[command].split()),
            "--quiet",
            "--output-dir",
            str(out),
        ]


def small_inputs(root: Path) -> dict[str, str]:
    """Two random GPT-2 folders of two blocks with the built-in tokenizer, and 160 texts: seconds a command."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from cohomcli.data.sample import load_texts
    from cohomcli.data.spec import DatasetSpec
    from cohomcli.models.load import load
    from cohomcli.models.quiet import quiet
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import LoadOptions

    tokenizer = load(resolve("tiny-gpt"), LoadOptions()).tokenizer
    found = {}
    for seed, name in enumerate(("model", "other")):
        torch.manual_seed(seed)
        sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        with quiet():
            GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(root / name)
            tokenizer.save_pretrained(root / name)
        found[name] = str(root / name)
    texts = root / "texts.txt"
    texts.write_text("\n\n".join(load_texts(DatasetSpec("builtin"), 160, 0).texts), encoding="utf-8")
    return found | {"texts": str(texts)}


def start(arguments: list[str], home: Path, harm: Harm | None = None) -> int:
    """Fork a process that runs `cohom` with `arguments`, after `harm`; its output goes to files in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        os.environ["COHOM_CACHE"] = str(home / "cache")
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        # what pytest or a notebook put in their place may write elsewhere
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if harm:
            harm()
        from cohomcli.__main__ import main

        code = main(arguments)
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - whatever main lets through must be seen in `err`, not unwind into the parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, home: Path, kill: tuple[int, float] | None = None, limit: float = 120.0) -> Finished:
    """Wait for `child`; `kill` is a signal and the seconds after which it is sent.

    Raises:
        Broken: the process does not end within `limit` seconds.
    """
    begun = time.monotonic()
    pending = kill
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        passed = time.monotonic() - begun
        if done:
            seconds = usage.ru_utime + usage.ru_stime
            return Finished(os.waitstatus_to_exitcode(status), (home / "err").read_text(errors="replace"), seconds)
        if pending and passed >= pending[1]:
            os.kill(child, pending[0])
            pending = None
        if passed > limit:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Broken(f"no end after {limit:.0f} s")
        time.sleep(0.002)


def run(arguments: list[str], home: Path, harm: Harm | None = None) -> Finished:
    """Run one command to its end."""
    return wait(start(arguments, home, harm), home)


def check(condition: bool, what: str) -> None:
    """Raise Broken with `what` unless `condition`."""
    if not condition:
        raise Broken(what)


def check_exit(done: Finished, codes: tuple[int, ...]) -> None:
    """The exit code is one of `codes`, and stderr has no traceback."""
    check(done.code in codes, f"exit code {done.code} instead of {codes}: {done.err.strip()[-300:]}")
    check("Traceback" not in done.err, f"a traceback: {done.err[-300:]}")
    if done.code > 0:
        check(done.err.splitlines()[-1].startswith("cohom: error: "), f"no clear last line: {done.err[-200:]}")


def check_folder(out: Path) -> list[Path]:
    """Every run folder in sight is whole; returns them."""
    runs = [path for path in sorted(out.iterdir()) if path.name not in (PARTIAL, LATEST)] if out.is_dir() else []
    for path in runs:
        manifest = json.loads((path / "manifest.json").read_text())
        check(manifest["status"] == "complete", f"{path.name} is {manifest['status']}")
        for name, digest in manifest["outputs"].items():
            check(hashlib.sha256((path / name).read_bytes()).hexdigest() == digest, f"{name} is not as hashed")
            check(not Path(name).name.startswith("."), f"{name} is a temporary file")
    link = out / LATEST
    check(not link.is_symlink() or link.resolve() in {path.resolve() for path in runs}, "latest points nowhere")
    for manifest_file in (out / PARTIAL).glob("*/manifest.json"):
        json.loads(manifest_file.read_text())
    return runs


def check_results(world: World, command: str, runs: list[Path]) -> None:
    """Every run gave the undisturbed results."""
    for path in runs:
        check((path / "results.json").read_bytes() == world.results[command], f"other results in {path.name}")


def preload() -> None:
    """Load what the commands load lazily, so that the forked processes need not."""
    packages = ("accelerate", "matplotlib.pyplot", "pandas", "redzed_tda", "ripser", "scipy.stats")
    jobs = ("analyze", "precision", "prune", "train")
    for name in (*packages, "sklearn.decomposition", *(f"cohomcli.jobs.{job}" for job in jobs)):
        import_module(name)


def measure(world: World, command: str) -> None:
    """The undisturbed run of `command`, and how long it takes."""
    out = world.root / f"whole-{command}"
    begun = time.monotonic()
    done = run(world.arguments(command, out), world.root / f"home-{command}")
    check_exit(done, (0,))
    world.seconds[command] = time.monotonic() - begun
    (whole,) = check_folder(out)
    world.results[command] = (whole / "results.json").read_bytes()


def finish(world: World, command: str, out: Path, home: Path) -> None:
    """Resume what was interrupted, or start again, until the results are there."""
    if not check_folder(out):
        resumes = any((out / PARTIAL).glob("*/manifest.json"))
        again = [command, "--resume", LATEST, "--quiet", "--output-dir", str(out)]
        check_exit(run(again if resumes else world.arguments(command, out), home), (0,))
    check_results(world, command, check_folder(out))


def kill(world: World, command: str, out: Path, draw: random.Random) -> str:
    """A signal at a random moment."""
    number = draw.choice(tuple(CODES))
    moment = draw.random() * world.seconds[command]
    home = out.parent
    done = wait(start(world.arguments(command, out), home), home, (number, moment))
    check_exit(done, (0, CODES[number]))
    finish(world, command, out, home)
    return f"{signal.Signals(number).name} at {moment:.2f} s, exit {done.code}"


def disk(world: World, command: str, out: Path, draw: random.Random) -> str:
    """No file may grow beyond a random size."""
    limit = int(10 ** draw.uniform(2, 5.5))

    def harm() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    done = run(world.arguments(command, out), out.parent, harm)
    check_exit(done, (0, 4))
    finish(world, command, out, out.parent)
    return f"{limit} bytes, exit {done.code}"


def cache(world: World, command: str, out: Path, draw: random.Random) -> str:
    """Every cached file is cut, overwritten or emptied between two runs."""
    home = out.parent
    check_exit(run(world.arguments(command, out), home), (0,))
    files = [path for path in (home / "cache").rglob("*") if path.is_file()]
    for path in files:
        data = bytearray(path.read_bytes())
        harm = draw.choice(("cut", "noise", "empty"))
        if harm == "noise":
            for _ in range(8):
                data[draw.randrange(min(len(data), 400))] = draw.randrange(256)
        path.write_bytes(bytes({"cut": data[: len(data) // 2], "noise": data, "empty": b""}[harm]))
    check_exit(run(world.arguments(command, out), home), (0,))
    check_results(world, command, check_folder(out))
    return f"{len(files)} files damaged"


def readonly(world: World, command: str, out: Path, draw: random.Random) -> str:
    """The output folder may not be written; as root, which may write anywhere, a file stands in its place."""
    out.parent.mkdir(parents=True)
    if os.geteuid() == 0:
        out.write_text("in the way")
    else:
        out.mkdir()
        out.chmod(0o500)
    done = run(world.arguments(command, out), out.parent)
    check_exit(done, (2,))
    if out.is_file():
        out.unlink()
    else:
        out.chmod(0o700)
    finish(world, command, out, out.parent)
    return f"exit {done.code}"


def crowd(world: World, command: str, out: Path, draw: random.Random) -> str:
    """Two equal runs at once on one output folder and one cache."""
    homes = (out.parent, out.parent / "second")
    shared = out.parent / "cache"

    def share() -> None:
        os.environ["COHOM_CACHE"] = str(shared)

    children = [start(world.arguments(command, out), home, share) for home in homes]
    for child, home in zip(children, homes, strict=True):
        check_exit(wait(child, home), (0,))
    runs = check_folder(out)
    check(len(runs) == 2, f"{len(runs)} run folders of two")
    check_results(world, command, runs)
    return "2 runs"


def clock(world: World, command: str, out: Path, draw: random.Random) -> str:
    """From a random moment on, all clocks but the monotonic one show yesterday."""
    after = time.time() + draw.random() * world.seconds[command]

    def harm() -> None:
        from datetime import datetime, timedelta, tzinfo

        from cohomcli.runs import folder

        true_time = time.time

        class Yesterday(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Yesterday:
                now = super().now(tz)
                return now - timedelta(days=1) if true_time() > after else now

        folder.datetime = Yesterday  # type: ignore[attr-defined, misc]
        time.time = lambda: true_time() - (86400 if true_time() > after else 0)

    check_exit(run(world.arguments(command, out), out.parent, harm), (0,))
    check_results(world, command, check_folder(out))
    return "one day back"


TRIALS: dict[str, Callable[[World, str, Path, random.Random], str]] = {
    "kill": kill, "disk": disk, "cache": cache, "readonly": readonly, "crowd": crowd, "clock": clock,
}  # fmt: skip
# Of ten trials: kills matter most, and every other fault has its turn.
ORDER = ("kill", "disk", "kill", "cache", "kill", "crowd", "kill", "readonly", "kill", "clock")


def trials(world: World, count: int, seed: int, only: str | None) -> Iterator[dict[str, Any]]:
    """Run `count` seeded trials, each in a folder of its own that is removed unless it failed."""
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        name = only or ORDER[number % len(ORDER)]
        command = draw.choice(tuple(COMMANDS))
        home = world.root / f"trial-{number}"
        row: dict[str, Any] = {"trial": number, "fault": name, "command": command}
        try:
            row |= {"ok": True, "detail": TRIALS[name](world, command, home / "experiments", draw)}
            shutil.rmtree(home)
        except (Broken, OSError, ValueError, KeyError) as error:
            row |= {"ok": False, "detail": f"{error} (see {home})"}
        yield row


@contextmanager
def world_in(root: Path) -> Iterator[World]:
    """Models and undisturbed runs under `root`, in a process with one thread and all modules loaded."""
    import torch

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    world = World(root, small_inputs(root))
    preload()
    for command in COMMANDS:
        measure(world, command)
    yield world


def main() -> int:
    """Print every trial to stderr and the counts to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=tuple(TRIALS))
    wanted = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="cohom-faults-"))
    with world_in(root) as world:
        rows = []
        for row in trials(world, wanted.trials, wanted.seed, wanted.only):
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
    failed = [row for row in rows if not row["ok"]]
    counts = {name: sum(row["fault"] == name for row in rows) for name in TRIALS}
    print(json.dumps({"trials": len(rows), "failed": failed, "by_fault": counts, "seconds": world.seconds}, indent=2))
    if not failed:
        shutil.rmtree(root)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
