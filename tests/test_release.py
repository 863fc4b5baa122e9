"""The release: wheel and sdist, and the wheel at work outside the repository, without network, cache or home."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import cohomcli

pytest.importorskip("build")
pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_models_corpus_and_licences_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("tiny-gpt/model.safetensors") for name in names)
    assert any("/licenses/LICENSE" in name for name in names)
    assert {name.split("/")[0] for name in names} == {"cohomcli", f"cohom-{cohomcli.__version__}.dist-info"}
    assert not [name for name in names if name.endswith((".pyc", ".partial"))]


def test_the_sdist_can_be_tested_and_documented(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile", "mkdocs.yml"}
    assert needed <= names
    assert {"tests/test_release.py", "docs/index.md", "configs/default.yaml", "benchmarks/faults.py"} <= names


def test_the_installed_wheel_runs_alone(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.defpath, "HOME": str(home), "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    environment |= {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}  # nothing listens there

    def cohom(*words: str) -> str:
        command = [sys.executable, "-P", "-m", "cohomcli", *words]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [sys.executable, "-P", "-c", "import cohomcli; print(cohomcli.__file__)"]
    used = subprocess.run(where, cwd=home, env=environment, capture_output=True, text=True, check=True).stdout
    assert used.startswith(str(target))
    assert cohomcli.__version__ in cohom("--version")
    cohom("run", "--samples", "8", "--no-precision", "--quiet", "--no-plots")
    assert (home / "experiments" / "latest" / "results.json").is_file()


def test_the_version_stands_once(dist: Path) -> None:
    assert f"version: {cohomcli.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    (wheel,) = dist.glob("*.whl")
    assert wheel.name.startswith(f"cohom-{cohomcli.__version__}-")
