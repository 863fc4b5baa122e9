"""Run every command of docs/tour.md in an empty folder and compare what it prints with what the page shows.

    python -m benchmarks.tour              # exit code 1 and a diff when the page shows something else
    python -m benchmarks.tour --close      # numbers within 2 %: another processor rounds otherwise
    python -m benchmarks.tour --words      # numbers may be any
    python -m benchmarks.tour --write      # put what was printed into the page

A block of the page that begins with `$ ` is a command and its output. Times, hashes, and the stamps in folder names are
left out of the comparison.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "tour.md"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
STAMP = re.compile(r"\d{8}T\d{6}Z")
HASH = re.compile(r"\b[0-9a-f]{12}\b")
TAIL = re.compile(r"-[0-9a-f]{6}\b")
TIME = re.compile(r"\d+(\.\d+)? (s|ms|seconds|CPU seconds)\b")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
CLOSE = 0.02


def commands(page: str) -> Iterator[tuple[str, str]]:
    """Every command of the page with the output shown for it."""
    for block in BLOCK.findall(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield command.strip(), shown.rstrip("\n")


def printed(command: str, folder: Path) -> str:
    """What `command` prints to stdout in `folder`; a `cohom` is that of this interpreter.

    Raises:
        RuntimeError: it ended with another code than 0 or, where the page says so by `# exit N`, than N.
    """
    words = shlex.split(command, comments=True)
    expected = int(found.group(1)) if (found := re.search(r"# exit (\d+)", command)) else 0
    environment = os.environ | {"COLUMNS": "110", "COHOM_CACHE": str(folder / "cache"), "NO_COLOR": "1"}
    full = [sys.executable, "-m", "cohomcli", *words[1:], "--quiet"] if words[0] == "cohom" else words
    if words[0] == "cohom" and words[1] in ("verify", "inspect", "list-models", "init", "--help"):
        full.pop()
    done = subprocess.run(full, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != expected:
        raise RuntimeError(f"{command}: exit code {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout.rstrip("\n")


def plain(text: str) -> str:
    """Without times, and with equal hashes and stamps in folder names."""
    return TIME.sub("TIME", TAIL.sub("-STAMP", HASH.sub("HASH", STAMP.sub("STAMP", text))))


def agree(shown: str, found: str, tolerance: float) -> bool:
    """Equal words, and numbers that differ by no more than that share of the larger."""
    shown, found = plain(shown), plain(found)
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", found).split():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(found), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=tolerance) for a, b in pairs)


def main() -> int:
    """Check the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--close", dest="tolerance", action="store_const", const=CLOSE, default=0.0)
    how.add_argument("--words", dest="tolerance", action="store_const", const=math.inf)
    parser.add_argument("--write", action="store_true")
    wanted = parser.parse_args()
    write = wanted.write
    page, wrong = PAGE.read_text(encoding="utf-8"), 0
    with tempfile.TemporaryDirectory() as folder:
        for command, shown in commands(page):
            found = printed(command, Path(folder))
            if agree(shown, found, wanted.tolerance):
                continue
            wrong += 1
            if write:
                page = page.replace(f"$ {command}\n{shown}", f"$ {command}\n{found}", 1)
            else:
                lines = difflib.unified_diff(plain(shown).splitlines(), plain(found).splitlines(), "page", command)
                print("\n".join(lines))
    if write:
        PAGE.write_text(page, encoding="utf-8")
    print(f"{wrong} outputs {'written' if write else 'differ'}", file=sys.stderr)
    return 0 if write or not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
