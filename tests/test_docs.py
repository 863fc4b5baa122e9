"""What the README and the pages of docs tell a reader to type: every option exists, and every command runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from cohomcli.__main__ import main
from cohomcli.cli.app import app
from tests import tinymodels
from tests.circuitfiles import write_circuit_files
from tests.gridmodels import save_grid_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```(?:console|sh|bash)\n(.*?)```", re.DOTALL)
NO_DRY_RUN = ("compare", "inspect", "verify", "list-models", "init", "generate")
# What stands for a reader's own model, data or run in the pages.
STAND_INS = {
    "gpt2": "my-model",
    "path/to/SmolLM2-135M-Instruct": "my-model",
    "path/to/finetuned": "my-model",
    "path/to/model": "my-model",
    "path/to/decoder": "tiny-gpt",  # whose vocabulary has the words of the circuit tasks
}
# Commands that need what a test has not: a hub (tests/test_models_hub.py has one of its own), an interrupted run.
NEEDS_MORE = ("EleutherAI/pythia-70m", "wikitext2", "--resume")


def lines(page: Path) -> list[str]:
    """Every line of the page's console blocks, without its comment; output shown in the tour is left out."""
    found = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        shown = block.splitlines()
        typed = [line[2:] for line in shown if line.startswith("$ ")] or shown
        found += [shlex.join(shlex.split(line, comments=True)) for line in typed if line.strip()]
    return found


def commands(page: Path) -> list[list[str]]:
    """The words after `cohom` in each command of the page; pipes and redirections end it."""
    found = []
    for line in lines(page):
        words = shlex.split(line)
        if words[:1] != ["cohom"]:
            continue
        end = next((i for i, word in enumerate(words) if word in ("|", ">", "&&", "||")), len(words))
        found.append(words[1:end])
    return found


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


WITH_COMMANDS = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=named)
def test_every_option_in_a_page_exists(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for words in commands(page):
        if words[0].startswith("-"):
            continue
        group.commands[words[0]].make_context(words[0], list(words[1:]))


def test_every_benchmark_in_the_pages_exists_with_its_options() -> None:
    count = 0
    for page in PAGES:
        for line in lines(page):
            if not (found := re.search(r"python -m (benchmarks\.[\w.]+)(.*)", line)):
                continue
            path = ROOT / (found.group(1).replace(".", "/"))
            source = (
                path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__main__.py"
            ).read_text()
            for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", found.group(2)):
                assert f'"{option}"' in source, f"{named(page)}: {found.group(1)} has no {option}"
            count += 1
    assert count > 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything the pages call by name: a model, texts, checkpoints, files, a finished run."""
    folder = tmp_path_factory.mktemp("world")
    model = tinymodels.save("gpt2", folder / "my-model", n_positions=256)
    for step in (100, 200):
        shutil.copytree(model, folder / "out" / f"checkpoint-{step}")
    shutil.copytree(model, folder / "tok")
    shutil.copy(model / "config.json", folder / "config.json")
    built = tinymodels.build("gpt2", n_positions=256)
    torch.save({"ema": built.state_dict()}, folder / "last.ckpt")
    (folder / "net.py").write_text(
        "import torch\n\n\ndef build():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())\n"
    )
    torch.manual_seed(0)
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)).state_dict(), folder / "net.pt")
    texts = [
        *tinymodels.SENTENCES,
        *(f"Sentence number {k} of many, and not the last of them all." for k in range(300)),
    ]
    (folder / "notes.jsonl").write_text("\n".join(f'{{"body": "{text}"}}' for text in texts))
    (folder / "lines.txt").write_text("\n".join(f"line {k}" for k in range(50_000)))
    (yaml,) = re.findall(r"```yaml\n(.*?architecture.*?)```", (ROOT / "docs" / "train.md").read_text(), re.DOTALL)
    (folder / "new.yaml").write_text(yaml)
    shutil.copytree(ROOT / "configs", folder / "configs")
    save_grid_model(folder / "my-digits")
    (folder / "partial.txt").write_text("label: 3\n" + "0123????\n" * 8)
    write_circuit_files(folder)
    np.save(folder / "x.npy", np.zeros((1, 3, 16, 16), dtype=np.float32))
    small = ["--samples", "12", "--no-plots", "--no-html", "--quiet", "--store-activations", "always"]
    for name in ("tiny-bert", str(model)):
        assert main(["tda", "-m", name, *small, "--output-dir", str(folder / "experiments")]) == 0
    (folder / "RUN").symlink_to((folder / "experiments" / "latest").resolve())
    return folder


@pytest.fixture(scope="module")
def proofs(world: Path) -> Path:
    """A folder of certificates, and one by name beside it."""
    pytest.importorskip("flint")
    from tests.certificates import write_certificates

    found = write_certificates(world / "certificates")
    for path in (world / "certificates").iterdir():
        if path not in found[1:]:
            shutil.copy(path, world / ("cert.json" if path == found[0] else path.name))
    return world


def played(words: list[str]) -> list[str]:
    """The command with stand-ins for what a reader has and a test has not, and dry where the command offers that."""
    names = STAND_INS | ({"experiments/latest": "certificates"} if words[0] == "verify" else {})
    words = [names.get(word, word) for word in words]
    dry = words[0] not in NO_DRY_RUN and "--resume" not in words and "--help" not in words
    return [*words, "--dry-run"] if dry else words


@pytest.mark.parametrize("page", [page for page in WITH_COMMANDS if page.name != "tour.md"], ids=named)
def test_the_commands_of_a_page_run(page: Path, proofs: Path, monkeypatch, capsys) -> None:
    """Dry where the command offers that; `tests/test_tour.py` runs those of the tour in full."""
    monkeypatch.chdir(proofs)
    monkeypatch.setenv("COHOM_DATA__SAMPLES", "12")
    monkeypatch.setenv("COHOM_OUTPUT__PLOTS", "false")  # drawing takes longer than all the rest
    monkeypatch.setenv("COHOM_CACHE", str(proofs / "cache"))
    for words in commands(page):
        if any(word in " ".join(words) for word in NEEDS_MORE):
            continue
        capsys.readouterr()
        code = main(played(words))
        assert code == 0, f"cohom {' '.join(words)}: {capsys.readouterr().err[-400:]}"


def test_the_site_builds_with_a_page_for_every_command(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    group: Any = typer.main.get_command(app)
    for name in set(group.commands) - {"analyze-precision"}:
        assert "--help" in (tmp_path / "site" / "commands" / name / "index.html").read_text(), name
