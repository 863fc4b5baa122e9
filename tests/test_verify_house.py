"""The checker stands on its own: nothing in it imports torch, the engines' torch files, or the prover."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cohomcli

ROOT = Path(cohomcli.__file__).parent / "verify"
SOURCES = sorted(ROOT.rglob("*.py"))
OUTSIDE = {"numpy", "numpy.typing", "flint"}
# The only modules of ours outside the checker: errors, the registry, the memory probe, and exact integer mathematics.
OURS = {
    "cohomcli.errors",
    "cohomcli.registry",
    "cohomcli.models.memory",
    "cohomcli.precision.formats",
    "cohomcli.precision.spec",
    "cohomcli.precision.certificate",
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module}
            if node.module in ("cohomcli.verify", "cohomcli"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_checker_imports_little(path: Path) -> None:
    foreign = {
        name
        for name in imports(path) - OURS
        if not name.startswith("cohomcli.verify") and name.partition(".")[0] not in sys.stdlib_module_names
    }
    assert foreign <= OUTSIDE


def test_checking_loads_no_torch_and_no_other_heavy_library() -> None:
    heavy = ["torch", "transformers", "scipy", "pandas", "matplotlib", "sklearn", "safetensors"]
    code = (
        "import sys\n"
        "from cohomcli.verify import checker, table, kinds\n"
        "table.load(); [kinds.KINDS.get(name) for name in kinds.KINDS]\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
