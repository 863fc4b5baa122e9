"""Which tests run a line: learnt once from the suite under coverage with a context for every test, then kept."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.mutation import times

PACKAGE = "cohomcli"
COLLECTING = 0.5  # seconds that the first test of another file costs


def learn(tree: Path, cache: Path, files: Iterable[str]) -> None:
    """Run every test file of `tree` once; what `cache` holds already is not run again."""
    cache.mkdir(parents=True, exist_ok=True)
    paths = [str(tree), str(tree / "tests"), os.environ.get("PYTHONPATH", "")]
    for name in files:
        piece = cache / Path(name).stem
        if piece.with_suffix(".json").exists():
            continue
        print(f"learning {name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", times.__name__, "-p", "no:cacheprovider", name]
        command += [f"--cov={PACKAGE}", "--cov-context=test", "--cov-report="]
        written = {"COVERAGE_FILE": str(piece.with_suffix(".cov")), times.WHERE: str(piece.with_suffix(".json"))}
        environment = os.environ | written | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        subprocess.run(command, cwd=tree, env=environment, check=False, stdout=subprocess.DEVNULL)


@dataclass
class Covering:
    """`seconds` of every test that passed, `fixtures` of every test file; `lines` maps (path, line) to tests.

    A line that a fixture runs is covered by all tests of the file that the fixture was made for first.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    fixtures: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    lines: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    tests_of: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def read(cls, cache: Path, tree: Path, folders: Iterable[str]) -> Covering:
        """All pieces of `cache`, for the source files under `folders`."""
        found = cls()
        for piece in sorted(cache.glob("*.json")):
            for test, row in json.loads(piece.read_text())["tests"].items():
                if row.get("passed"):
                    file = test.split("::")[0]
                    found.seconds[test] = row["call"] + row.get("teardown", 0.0)
                    found.fixtures[file] = max(found.fixtures[file], row["setup"])
                    found.tests_of[file].append(test)
        for piece in sorted(cache.glob("*.cov*")):
            found._add(piece, tree, tuple(folders))
        return found

    def _add(self, piece: Path, tree: Path, folders: tuple[str, ...]) -> None:
        from coverage import CoverageData

        data = CoverageData(str(piece))
        data.read()
        for name in data.measured_files():
            path = os.path.relpath(tree / name, tree)
            if path.startswith(folders):
                for line, contexts in data.contexts_by_lineno(name).items():
                    self.lines[path, line].update(*map(self._tests, contexts))

    def _tests(self, context: str) -> list[str]:
        test, _, phase = context.rpartition("|")
        if phase == "run":
            return [test] if test in self.seconds else []
        return self.tests_of.get(test.split("::")[0], [])

    def tests_for(self, tree: Path, path: str, line: int) -> tuple[set[str], bool]:
        """All tests that run the statement at `line`, and True; for what is run at import, those that run what uses it,
        and False.
        """
        source = ast.parse((tree / path).read_text("utf-8"))
        found = self._union((path, number) for number in _statement(source, line))
        if found:
            return found, True
        names, files = _names(source, line), [path, *sorted({file for file, _ in self.lines} - {path})]
        for file in files:  # its own first, then all that use what it defines
            users = _users(ast.parse((tree / file).read_text("utf-8")), names)
            found |= self._union((file, number) for number in users)
            if found and file == path:
                break
        return found or self._union((path, number) for file, number in list(self.lines) if file == path), False

    def _union(self, places: Iterable[tuple[str, int]]) -> set[str]:
        return set().union(*(self.lines.get(place, set()) for place in places))

    def fastest(self, tests: Iterable[str], cap: float) -> tuple[list[str], float]:
        """The fastest of `tests` that together take `cap` CPU seconds, by file, and what they take."""
        chosen: dict[str, list[str]] = defaultdict(list)
        total = 0.0
        for test in sorted(tests, key=lambda test: (self._cost(test), test)):
            file = test.split("::")[0]
            cost = self.seconds[test] + (0 if file in chosen else self.fixtures[file] + COLLECTING)
            if chosen and total + cost > cap:
                continue
            chosen[file].append(test)
            total += cost
        files = sorted(chosen, key=lambda file: self.fixtures[file] + sum(self.seconds[test] for test in chosen[file]))
        return [test for file in files for test in chosen[file]], total

    def _cost(self, test: str) -> float:
        return self.seconds[test] + self.fixtures[test.split("::")[0]]


def _statement(tree: ast.AST, line: int) -> range:
    """The lines of the innermost statement around `line`: of a compound one its head, of a function all of it."""
    best: ast.stmt | None = None
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and _first(node) <= line <= (node.end_lineno or line):
            best = node  # walk goes breadth first: the innermost comes last
    if best is None:
        return range(line, line + 1)
    body = getattr(best, "body", None)
    if body and not isinstance(best, ast.FunctionDef):
        return range(_first(best), max(body[0].lineno, line + 1))
    return range(_first(best), 1 + (best.end_lineno or line))


def _first(node: ast.stmt) -> int:
    return int(min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]))


def _names(tree: ast.AST, line: int) -> set[str]:
    """What the statements around `line` define."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and _first(node) <= line <= (node.end_lineno or line):
            found |= {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else set()
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def _users(tree: ast.AST, names: set[str]) -> Iterator[int]:
    """Lines that name one of `names`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and getattr(node, "id", getattr(node, "attr", None)) in names:
            yield node.lineno
