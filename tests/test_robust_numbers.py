"""Numerically awkward models and texts on the real commands: an answer or one clear line, and strict JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from cohomcli.__main__ import main
from tests import tinymodels

TEXTS = "\n".join(tinymodels.SENTENCES * 2 + tuple(f"Sentence number {k} of many, and more." for k in range(20)))


def _gpt2(**changes: Any) -> Any:
    return tinymodels.build("gpt2", **changes)


def _scaled(factor: float) -> Callable[[], Any]:
    def make() -> Any:
        model = _gpt2()
        with torch.no_grad():
            model.transformer.h[1].mlp.c_proj.weight.mul_(factor)
        return model

    return make


def _constant() -> Any:
    """Every text ends in the same activations from the first block on."""
    model = _gpt2()
    with torch.no_grad():
        model.transformer.wte.weight.copy_(model.transformer.wte.weight[:1].expand_as(model.transformer.wte.weight))
        model.transformer.wpe.weight.zero_()
    return model


AWKWARD: dict[str, Callable[[], Any]] = {
    "one block": lambda: _gpt2(n_layer=1),
    "a hundred blocks": lambda: _gpt2(n_layer=100, n_embd=8, n_head=1),
    "odd width": lambda: _gpt2(n_embd=13, n_head=1, n_inner=7),
    "half precision": lambda: _gpt2().half(),
    "bfloat16": lambda: _gpt2().bfloat16(),
    "denormal weights": _scaled(1e-42),
    "huge weights": _scaled(1e12),
    "constant": _constant,
}


def _save(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tinymodels.tokenizer("causal").save_pretrained(folder)
    return str(folder)


def _checked(capsys: Any, out: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr; results are strict JSON, and a refusal is one line."""
    capsys.readouterr()
    code = main([*arguments, "--quiet", "--output-dir", str(out)])
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert code in (0, 3, 4), err
    if code and not list(out.glob("2*")):
        assert err.startswith("cohom: error: ")
        assert err.count("\n") == 1
    for path in out.glob("2*/results.json"):
        json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(constant))
    return code, err


@pytest.mark.parametrize("name", AWKWARD)
def test_topology_of_an_awkward_model(capsys, tmp_path: Path, name: str) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(TEXTS)
    model = _save(AWKWARD[name](), tmp_path / "model")
    arguments = ("tda", "-m", model, "-d", str(texts), "--samples", "20", "--no-plots", "--no-html", "--no-cache")
    layers = ("--layers", "embedding,0,-1") if name == "a hundred blocks" else ()
    code, err = _checked(capsys, tmp_path / "out", *arguments, *layers)
    assert code == 0, err
    document = json.loads(next((tmp_path / "out").glob("2*/results.json")).read_text())
    for layer in document["topology"]["layers"]:
        assert layer["h0"]["count"] == layer["n_distinct"] - 1


@pytest.mark.parametrize("name", ["odd width", "bfloat16", "denormal weights", "huge weights"])
def test_a_plan_for_an_awkward_model(capsys, tmp_path: Path, name: str) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(TEXTS)
    model = _save(AWKWARD[name](), tmp_path / "model")
    arguments = ("precision", "-m", model, "-d", str(texts), "--eps", "0.05", "--no-plots", "--no-html")
    code, err = _checked(capsys, tmp_path / "out", *arguments)
    assert code == 0, err


def test_a_vocabulary_of_two_and_texts_of_one_token(capsys, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    _gpt2(vocab_size=2).save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="b").save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join({"a", "b", *("".join(f"{'ab'[k]} " for k in rng.integers(0, 2, 6)) for _ in range(40))}))
    arguments = ("run", "-m", str(tmp_path / "model"), "-d", str(texts), "--unit", "line", "--samples", "12")
    code, err = _checked(capsys, tmp_path / "out", *arguments, "--no-plots", "--no-html", "--no-cache")
    assert code == 0, err
    alone = tmp_path / "alone.txt"
    alone.write_text("a\nb\n")
    arguments = ("tda", "-m", str(tmp_path / "model"), "-d", str(alone), "--unit", "line", "--samples", "2")
    code, err = _checked(capsys, tmp_path / "two", *arguments, "--no-plots", "--no-html", "--no-cache")
    assert code == 0, err
