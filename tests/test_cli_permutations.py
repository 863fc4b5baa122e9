"""Permutation tests by the command: trained and untrained models told apart, two seeds not; pairs by their texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cohomcli.__main__ import main
from cohomcli.topology.correlation import holm

SEEDS = 20
FAST = ["--samples", "40", "--no-plots", "--no-html", "--no-perplexity", "--quiet", "--no-geometry", "--track", "0"]
BARE = ["--null", "none", "--no-bands"]
GATE = ["--fail-on", "topology.permutations.population.p_value < 0.05"]


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COHOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with untrained models of tiny-gpt's configuration, one for each seed, and one more beside it."""
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import LoadOptions

    folder = tmp_path_factory.mktemp("untrained")
    loaded = load(resolve("tiny-gpt"), LoadOptions())
    for seed in range(SEEDS + 1):
        torch.manual_seed(seed)
        target = folder / "seeds" / f"seed-{seed}" if seed < SEEDS else folder / "another"
        type(loaded.model)(loaded.model.config).save_pretrained(target)
        loaded.tokenizer.save_pretrained(target)
    return folder


def compare(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    code = main(["compare", *map(str, arguments), *FAST, *BARE, "--output-dir", str(out), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_trained_and_untrained_are_told_apart_and_two_seeds_are_not(seeds: Path, tmp_path: Path, capsys) -> None:
    summary = tmp_path / "summary.md"
    code, trained, err = compare(
        capsys, tmp_path / "a", "tiny-gpt", "--population", seeds / "seeds", *GATE, "--markdown", summary
    )
    assert code == 1
    assert "topology.permutations.population.p_value" in err
    (test,) = trained["comparison"]["permutations"]["population"]
    assert test["p_value"] == test["p_holm"] == 1 / (SEEDS + 1)
    assert (test["units"], test["arrangements"], test["method"]) == (SEEDS + 1, SEEDS + 1, "exact")
    assert trained["topology"]["permutations"]["population"]["n_members"] == SEEDS
    report = (Path(trained["run"]) / "report.md").read_text()
    assert "Ranked among 20 models of the population, 1 of 1 analysis is told apart at 5%" in report
    assert "### Permutation tests among the population, layer by layer" in report
    assert "### Permutation tests" in summary.read_text()

    members = next(path for path in (tmp_path / "a").iterdir() if "seed-0" in path.name and not path.is_symlink())
    code, seed, err = compare(capsys, tmp_path / "b", seeds / "another", "--population", members, *GATE)
    assert (code, err) == (0, "")
    (test,) = seed["comparison"]["permutations"]["population"]
    assert test["p_value"] > 0.05
    assert all(layer["p_joint"] >= layer["p_value"] for layer in test["layers"])


def test_pairs_are_tested_by_their_texts_and_corrected(seeds: Path, tmp_path: Path, capsys) -> None:
    models = ["tiny-gpt", seeds / "another", seeds / "seeds" / "seed-0"]
    code, document, _ = compare(
        capsys, tmp_path, *models, "--permutations", "200", "--fail-on", "topology.permutations.texts.p_value < 0"
    )
    assert code == 0
    tests = document["comparison"]["permutations"]["texts"]
    assert [(test["row"], test["against"]) for test in tests] == [(1, 0), (2, 0)]
    assert [(test["units"], test["arrangements"], test["method"]) for test in tests] == [(5, 16, "exact")] * 2
    for test in tests:
        assert test["p_value"] == min(layer["p_joint"] for layer in test["layers"])
        assert {layer["layer"] for layer in test["layers"]} >= {"embedding", "layer_0", "final_norm"}
    assert [test["p_holm"] for test in tests] == holm([test["p_value"] for test in tests])
    assert document["topology"]["permutations"]["texts"]["p_value"] == min(test["p_holm"] for test in tests)
    layers = document["comparison"]["permutations"]["consecutive"]
    assert [(test["row"], test["against"]) for test in layers] == [(0, 0), (1, 1), (2, 2)]
    assert layers[0]["layers"][0]["layer"] == "embedding to layer_0"
    assert len(layers[0]["layers"]) == len(tests[0]["layers"]) - 1
    cross = document["comparison"]["cross"]
    assert [(one["row"], one["against"]) for one in cross] == [(1, 0), (2, 0)]
    (first, second), again = cross, document["comparison"]["drift"]["models"]
    for one, drift in zip((first, second), again, strict=True):
        diagonal = [1 - one["values"][i][i] for i in range(len(one["layers"]))]
        assert diagonal == pytest.approx([layer["drift"] for layer in drift["layers"]], abs=1e-9)


def test_what_was_not_tested_trips_the_gate(seeds: Path, tmp_path: Path, capsys) -> None:
    code, _, err = compare(capsys, tmp_path, "tiny-gpt", seeds / "another", *GATE)
    assert code == 1
    assert "no permutation test was asked for" in err
    few = ["--permutations", "50", "--samples", "24", "--fail-on", "topology.permutations.texts.p_value < 0.01"]
    code = main(["compare", "tiny-gpt", str(seeds / "another"), *FAST[2:], *BARE, *few, "--output-dir",
                 str(tmp_path / "few")])  # fmt: skip
    assert code == 1
    assert "too few to exchange" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["tiny-gpt", "--population", "nowhere"], 3, "nowhere"),
        (["tiny-gpt", "tiny-gpt", "--cross", "ckaa"], 2, "ckaa"),
        (["tiny-gpt", "--permutations", "-1"], 2, "permutations"),
    ],
)
def test_bad_wishes_are_one_line(tmp_path: Path, capsys, arguments: list[str], code: int, says: str) -> None:
    found, document, err = compare(capsys, tmp_path, *arguments)
    assert (found, document) == (code, {})
    assert says in err
    assert err.count("\n") == 1
