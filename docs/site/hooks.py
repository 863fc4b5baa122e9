"""mkdocs hooks: pages made from what they describe: commands from their --help, benchmarks from their docstrings."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation

COMMANDS = (
    "run", "tda", "precision", "train", "prune", "compare", "generate", "circuits",
    "inspect", "verify", "list-models", "init",
)  # fmt: skip


def on_config(config: Any) -> Any:
    """List the pages of the commands after the tour."""
    pages = [{f"cohom {name}": f"commands/{name}.md"} for name in COMMANDS]
    at = next(i for i, item in enumerate(config.nav) if "Subjects" in item)
    config.nav.insert(at, {"Commands": pages})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add those pages."""
    for name in COMMANDS:
        shown = [sys.executable, "-m", "cohomcli", name, "--help"]
        done = subprocess.run(shown, capture_output=True, text=True, check=True)
        page = f"# cohom {name}\n\n```text\n{done.stdout.rstrip()}\n```\n"
        files.append(File.generated(config, f"commands/{name}.md", content=page))
    files.append(
        File.generated(config, "benchmarks.md", content=_benchmarks(Path(config.docs_dir).parent / "benchmarks"))
    )
    return files


def _benchmarks(folder: Path) -> str:
    """What every module of the folder says of itself."""
    page = "# Benchmarks\n\nEvery figure in these pages is printed by one of these commands, run from a checkout.\n"
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__main__.py")]):
        words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        name = path.stem if path.stem != "__main__" else path.parent.name
        if "python -m benchmarks." in words:
            page += f"\n## {name}\n\n{words}\n"
    return page


def on_nav(nav: Navigation, config: Any, files: Files) -> Navigation:
    """Refuse a command without a page."""
    done = subprocess.run([sys.executable, "-m", "cohomcli", "--help"], capture_output=True, text=True, check=True)
    listed = done.stdout.split("Commands:")[1].splitlines()
    missing = {line.split()[0] for line in listed if line.strip()} - {*COMMANDS, "analyze-precision"}
    if missing:
        raise SystemExit(f"docs/site/hooks.py: no page for {sorted(missing)}")
    return nav
