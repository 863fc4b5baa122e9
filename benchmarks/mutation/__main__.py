"""Mutation testing of `precision` and `topology`: how many of 200 small changes to their code do the tests notice?

    python -m benchmarks.mutation --save FOLDER            # 200 seeded mutants; goes on where it stopped
    python -m benchmarks.mutation --save FOLDER --again    # only those that survived so far
    python -m benchmarks.mutation --save FOLDER --report   # what is saved

Needs `pip install -e '.[dev,mutation]'`. A copy of the tree is made in FOLDER/tree and only the copy is changed. The
suite is run once there under coverage, a context for every test, to learn which tests run a line. Each mutant is then
given the fastest tests that run its line, up to `--cap` CPU seconds, in a forked process that stops at the first
failure; tests that failed on the whole code are not used. A process that takes four times as long as its tests did is
a timeout, and counts as killed: a loop that never ends is noticed. Left out are annotations, f-strings, the words of
errors and logs, and changes of == into `is`. Prints every survivor and one JSON object with the counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.mutation.covering import Covering, learn
from benchmarks.mutation.mutants import Mutant, difference, draw, mutated

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("cohomcli/precision", "cohomcli/topology")
COPIED = ("cohomcli", "tests", "benchmarks", "configs", "docs", "pyproject.toml", "README.md", "CHANGELOG.md")
# They look at definitions, and run no line of the engines that would show it.
ALWAYS = (
    "tests/test_house.py::test_dataclasses_of_the_engines_cannot_be_changed",
    "tests/test_topology_corners.py::test_the_engine_s_defaults_are_the_command_s",
)
IGNORED = shutil.ignore_patterns("__pycache__", ".*")


def copy_tree(target: Path) -> None:
    """The package, its tests and what they read."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=IGNORED, dirs_exist_ok=True)
        elif source.exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def refresh_tests(target: Path) -> None:
    """Bring the tests up to date, for mutants that survived the old ones."""
    shutil.copytree(ROOT / "tests", target / "tests", ignore=IGNORED, dirs_exist_ok=True)


def judge(tree: Path, covering: Covering, mutant: Mutant, cap: float) -> dict[str, Any]:
    """Give one mutant its tests."""
    from benchmarks.mutation.forking import run, written

    file = tree / mutant.path
    source = file.read_text("utf-8")
    changed = mutated(source, mutant.operator, mutant.occurrence)
    candidates, executed = covering.tests_for(tree, mutant.path, mutant.line)
    tests, seconds = covering.fastest(candidates, cap)
    row: dict[str, Any] = {"mutant": mutant.key, "change": difference(source, changed), "tests": len(tests)}
    with written(file, changed):
        ended = run(tree, [*tests, *(() if executed else ALWAYS)], 4 * seconds + 10)
    outcome = {"passed": "survived", "failed": "killed", "timeout": "timeout"}[ended.outcome]
    return row | {"outcome": outcome, "detail": ended.detail, "seconds": round(ended.seconds, 1)}


def check_killers(tree: Path, rows: dict[str, dict[str, Any]]) -> str:
    """Run the tests that killed on the whole code: all must pass there, in the same kind of process."""
    from benchmarks.mutation.forking import run

    details = [row["detail"] for row in rows.values() if row["outcome"] == "killed"]
    killers = sorted({detail.split(": ")[0] for detail in details if "::" in detail.split(": ")[0]})
    ended = run(tree, killers, 900)
    return f"{len(killers)} tests that killed: {ended.outcome} on the whole code {ended.detail}".strip()


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Counts of outcomes, and the share that was noticed."""
    counts = Counter(row["outcome"] for row in rows.values())
    noticed = counts["killed"] + counts["timeout"]
    seconds = sum(row["seconds"] for row in rows.values())
    return {"mutants": len(rows), **counts, "noticed": noticed / max(1, len(rows)), "cpu_seconds": round(seconds)}


def main() -> int:
    """Judge what is not judged yet, and print the counts; exit code 1 below 80 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, required=True, help="folder for the copy, the map and the outcomes")
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cap", type=float, default=20.0, help="CPU seconds of tests for a mutant")
    parser.add_argument("--budget", type=float, default=float("inf"), help="CPU seconds after which to stop")
    parser.add_argument("--only", default="", help="only mutants whose name holds this")
    parser.add_argument("--tests", default="tests/test_*.py", help="test files to learn from")
    parser.add_argument("--again", action="store_true", help="take the tests of now to what survived")
    parser.add_argument("--report", action="store_true", help="print what is saved")
    parser.add_argument("--check", action="store_true", help="run the tests that killed on the whole code")
    wanted = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    outcomes, tree = wanted.save / "outcomes.json", (wanted.save / "tree").resolve()
    rows: dict[str, dict[str, Any]] = json.loads(outcomes.read_text()) if outcomes.exists() else {}
    if not wanted.report:
        work(wanted, tree, rows, outcomes)
    for row in rows.values():
        if row["outcome"] == "survived":
            print(f"{row['mutant']}\n    {row['change']}\n    {row['tests']} tests {row['detail']}")
    if wanted.check:
        print(check_killers(tree, rows))
    print(json.dumps(summary(rows), indent=2))
    return 1 if summary(rows)["noticed"] < 0.8 else 0


def sample(tree: Path, wanted: argparse.Namespace) -> list[Mutant]:
    """The mutants, drawn once: looking for all that can be changed takes a minute."""
    file = wanted.save / f"mutants-{wanted.seed}-{wanted.mutants}.json"
    if not file.exists():
        file.write_text(json.dumps([asdict(one) for one in draw(tree, FOLDERS, wanted.mutants, wanted.seed)], indent=1))
    return [Mutant(**row) for row in json.loads(file.read_text())]


def work(wanted: argparse.Namespace, tree: Path, rows: dict[str, dict[str, Any]], outcomes: Path) -> None:
    """Copy, learn, judge; every outcome is saved at once."""
    from benchmarks.mutation.forking import preload

    if not tree.exists():
        copy_tree(tree)
    for left in tree.rglob("*.original"):  # by a run that was killed
        left.replace(left.with_suffix(".py"))
    if wanted.again:
        refresh_tests(tree)
    files = sorted(str(path.relative_to(tree)) for path in tree.glob(wanted.tests))
    learn(tree, wanted.save / "map", files)
    covering = Covering.read(wanted.save / "map", tree, FOLDERS)
    preload(tree)
    used = 0.0
    for mutant in sample(tree, wanted):
        known = rows.get(mutant.key)
        if wanted.only not in mutant.key or (known and not (wanted.again and known["outcome"] == "survived")):
            continue
        row = judge(tree, covering, mutant, wanted.cap)
        rows[mutant.key] = row
        outcomes.write_text(json.dumps(rows, indent=1))
        print(f"{row['outcome']:9}{row['seconds']:6.1f} s {row['mutant']}", file=sys.stderr, flush=True)
        used += row["seconds"]
        if used > wanted.budget:
            break


if __name__ == "__main__":
    sys.exit(main())
