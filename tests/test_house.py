"""The house rules of the code base, checked on its syntax trees: who may import whom, and what stays lazy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cohomcli

ROOT = Path(cohomcli.__file__).parent
ENGINES = {"precision", "topology", "pruning", "training", "circuits"}
FORBIDDEN: dict[str, set[str]] = {
    **{engine: (ENGINES - {engine}) | {"cli", "jobs", "report", "runs"} for engine in ENGINES},
    "models": ENGINES | {"cli", "jobs", "report", "runs", "data"},
    "nn": ENGINES | {"cli", "jobs", "report", "runs", "data", "models"},
    "data": ENGINES | {"cli", "jobs", "report", "runs", "models"},
    "report": {"cli", "jobs", "runs", "models.load", "data.sample"},
    "runs": {"cli", "jobs", "report"},
    "jobs": {"cli"},
}
SOURCES = sorted(path for path in ROOT.rglob("*.py"))


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_walls_between_the_rooms_hold(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    banned = {f"cohomcli.{other}" for other in FORBIDDEN.get(room, set())}
    crossed = [name for name in _imports(path) if any(name == wall or name.startswith(f"{wall}.") for wall in banned)]
    assert not crossed


SILENT = {"topology", "models", "nn", "precision", "training", "circuits"}


@pytest.mark.parametrize("path", [p for p in SOURCES if SILENT & set(p.parts)], ids=str)
def test_engines_print_nothing(path: Path) -> None:
    if path.name.startswith("build_"):
        pytest.skip("a maintainer's script")
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


# Filled step by step, or handed back by transformers: everything else that engines make is frozen.
CHANGEABLE = {
    "Choice", "CohomologicalOutput", "CausalScorer", "CriticalSequenceDetector", "Emulation", "Inference",
    "ModuleContent", "SpectralLearningRateScheduler", "StorageSpec", "_Entries", "_Found", "_Leaf", "_Reduction",
    "_Rows", "_Run", "_Sequence", "_Sums",
}  # fmt: skip


def test_dataclasses_of_the_engines_cannot_be_changed() -> None:
    rooms = ENGINES | {"models", "nn", "verify"}
    changeable = set()
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] not in rooms:
            continue
        classes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ClassDef)]
        for node in classes:
            decorators = [ast.unparse(d) for d in node.decorator_list if "dataclass" in ast.unparse(d)]
            changeable |= {node.name for d in decorators if "frozen=True" not in d}
    assert changeable <= CHANGEABLE


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list-models"], ["--version"]])
def test_light_commands_load_no_heavy_library(arguments: list[str]) -> None:
    heavy = ["torch", "transformers", "datasets", "ripser", "persim", "matplotlib", "pandas", "sklearn", "scipy"]
    code = (
        "import sys; from cohomcli.__main__ import main; code = main(sys.argv[1:]);"
        f"loaded = [m for m in {heavy!r} if m in sys.modules]; print(loaded, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr.strip().endswith("[]")
