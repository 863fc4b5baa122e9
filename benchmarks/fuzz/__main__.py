"""Coverage-guided fuzzing (atheris, libFuzzer) of all that reads what a stranger wrote.

    pip install atheris
    python -m benchmarks.fuzz                          # every target, a million executions each
    python -m benchmarks.fuzz --target gate --runs 20000 --seed 3

Targets: `file` (the model door), `certificate` (what `cohom verify` checks), `config` (YAML), `gate` (`--fail-on`), and
`run` (the reader of run folders). A target passes when every input is either accepted or refused by an error of ours;
any other exception, 10 seconds for one input, 2 GiB of memory, running anything, opening a socket, or touching a file
outside the scratch folder ends it and keeps the input. Prints one JSON object; exit code 1 when a target failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.fuzz.targets import REFUSALS, TARGETS
from benchmarks.fuzz.watch import Watch

SECONDS, MEGABYTES, LONGEST = 10, 2048, 1 << 16
DONE = re.compile(r"Done (\d+) runs in (\d+) second")
COVERED = re.compile(r"cov: (\d+)")


def changed_json(data: bytes, longest: int, seed: int) -> bytes:
    """One leaf of a JSON document changed; bytes that are no JSON, and every fourth input, are changed as bytes."""
    import atheris

    from tests.jsonchanges import leaves, with_change

    draw = random.Random(seed)
    if draw.random() < 0.75:
        with contextlib.suppress(ValueError, RecursionError, TypeError, AttributeError):
            document = json.loads(data)
            changed = json.dumps(with_change(document, draw.choice(list(leaves(document))), draw)).encode()
            if len(changed) <= longest:
                return changed
    return bytes(atheris.Mutate(data, longest))


def fuzz(name: str, runs: int, seed: int, scratch: Path) -> None:
    """Feed one target for ever or for `runs` inputs; libFuzzer ends the process itself."""
    import atheris

    target = TARGETS[name]
    with atheris.instrument_imports(include=list(target.modules)):
        for module in target.modules:
            __import__(module)
        folder = scratch / "work"
        folder.mkdir()
        seeds, feed = target.prepare(folder)
        for data in seeds:  # loads what is loaded lazily, before the watch begins
            with contextlib.suppress(*REFUSALS):
                feed(data)
    corpus = scratch / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    watch = Watch(folder)

    def one(data: bytes) -> None:
        watch.armed = True
        try:
            feed(data)
        except REFUSALS:
            pass
        finally:
            watch.armed = False

    options = [f"-runs={runs}", f"-seed={seed or 1}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}"]
    options += [f"-max_len={LONGEST}", f"-artifact_prefix={scratch}/found-", "-verbosity=1"]
    extra: dict[str, Any] = {"custom_mutator": changed_json} if target.json_shaped else {}
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, **extra)
    atheris.Fuzz()


def outcome(name: str, runs: int, seed: int) -> dict[str, Any]:
    """Run one target in a process of its own, and read from its words how it went."""
    scratch = Path(
        tempfile.mkdtemp(prefix=f"cohom-fuzz-{name}-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )
    command = [sys.executable, "-m", "benchmarks.fuzz", "--target", name, "--runs", str(runs), "--seed", str(seed)]
    done = subprocess.run([*command, "--scratch", str(scratch)], capture_output=True, text=True, errors="replace")
    finished = DONE.search(done.stderr)
    covered = COVERED.findall(done.stderr)
    found = sorted(str(path) for path in scratch.glob("found-*"))
    row: dict[str, Any] = {
        "target": name,
        "executions": int(finished.group(1)) if finished else None,
        "seconds": int(finished.group(2)) if finished else None,
        "covered": int(covered[-1]) if covered else None,
        "ok": done.returncode == 0 and finished is not None and not found,
    }
    if not row["ok"]:
        row |= {"found": found, "says": done.stderr[-1500:]}
    return row


def main() -> int:
    """Run the targets one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=tuple(TARGETS), action="append", help="repeatable [all]")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.scratch:
        fuzz(wanted.target[0], wanted.runs, wanted.seed, wanted.scratch)
        return 0
    rows = []
    for name in wanted.target or TARGETS:
        row = outcome(name, wanted.runs, wanted.seed)
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    print(json.dumps({"targets": rows}, indent=2))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
