"""Every claim with a certificate in the run folders below a path, checked in a process that cannot import torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The checker has to work where there is no torch at all, not merely leave it alone.
_WITHOUT_TORCH = """
import sys

class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "scipy", "safetensors"):
            raise ImportError(f"{name} is barred here")
        return None

sys.meta_path.insert(0, Barred())
from cohomcli.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def verify_without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`cohom verify` with these arguments where importing torch raises."""
    command = [sys.executable, "-c", _WITHOUT_TORCH, "verify", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def certified_claims(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(status, certificate) of every claim of a results.json, wherever it stands; "" where a proved one has none."""

    def walk(node: Any) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict):
            if str(node.get("status", "")).startswith("proved") and "text" in node:
                yield str(node["status"]), str(node.get("certificate") or "")
            for item in node.values():
                yield from walk(item)
        elif isinstance(node, list):
            for item in node:
                yield from walk(item)

    return walk(results)


def run_folders(base: Path) -> list[Path]:
    """The published run folders below `base` whose results claim something proved."""
    found = []
    for results in base.rglob("results.json"):
        if ".partial" not in results.parts and not results.parent.is_symlink():
            try:
                claimed = any(certified_claims(json.loads(results.read_text(encoding="utf-8"))))
            except (OSError, ValueError):
                continue  # a test damaged it
            found += [results.parent] if claimed else []
    return sorted({folder.resolve() for folder in found})


def check_runs(base: Path) -> tuple[int, list[str]]:
    """How many certificates were checked, and what is wrong: a proved claim without one, or one that is rejected."""
    wrong, files = [], set()
    for folder in run_folders(base):
        for status, certificate in certified_claims(json.loads((folder / "results.json").read_text(encoding="utf-8"))):
            if certificate:
                files.add(str(folder / certificate))
            elif status == "proved":
                wrong.append(f"{folder}: proved without a certificate")
    if files:
        done = verify_without_torch("--json", "-q", *sorted(files))
        verdicts = json.loads(done.stdout)["certificates"] if done.stdout else []
        wrong += [f"{v['file']}: {v['state']}: {v['reason']}" for v in verdicts if v["state"] != "verified"]
        wrong += [] if len(verdicts) == len(files) else [f"cohom verify: {done.stderr.strip()[-500:]}"]
    return len(files), wrong
