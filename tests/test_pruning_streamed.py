"""Pruning with one block in memory: the same bits as pruning the whole model, and shards that stock classes load."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cohomcli.__main__ import main
from cohomcli.errors import CohomError, InputRefused
from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.shards import ShardWriter
from cohomcli.models.spec import LoadOptions
from cohomcli.models.streamed import open_streamed
from cohomcli.pruning.options import PruneOptions
from cohomcli.pruning.pattern import parse_pattern
from cohomcli.pruning.prune import prune
from cohomcli.pruning.stream import DENSE, PRUNED
from cohomcli.pruning.streamed import prune_streamed

SMALL = {"vocab_size": 1024, "tie_word_embeddings": True}
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
FAMILIES = {
    "gpt2": SMALL | {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 32},
    "llama": SMALL | WIDE | {"num_key_value_heads": 2, "tie_word_embeddings": False},
}
OPTIONS = LoadOptions(tokenizer="tiny-gpt")
FAST = ["--calibration-tokens", "512", "--eval-tokens", "640", "--block-size", "64", "--no-html", "--no-plots"]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request, tmp_path_factory) -> Path:
    """A model in several shards, as stock classes write it."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp(request.param)
    config = CONFIG_MAPPING[request.param](**FAMILIES[request.param])
    AutoModelForCausalLM.from_config(config).save_pretrained(place, max_shard_size="40KB")
    assert len(list(place.glob("model-*.safetensors"))) > 2
    return place


def _batches(seed: int, *sizes: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(5, 1024, (size, 12), generator=generator) for size in sizes]
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("model*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize(
    ("method", "pattern"),
    [("chain", "0.5"), ("wanda", "0.5"), ("chain", "mlp:0.25"), ("wanda", "mlp:0.25"), ("sparsegpt", "2:4")],
)
def test_streamed_pruning_gives_the_bits_of_pruning_in_memory(
    folder: Path, tmp_path: Path, method: str, pattern: str
) -> None:
    options, held = PruneOptions(method, parse_pattern(pattern)), _batches(2, 4, 4, 1)
    whole, streamed = load(resolve(str(folder)), OPTIONS), open_streamed(resolve(str(folder)), OPTIONS)
    assert streamed.info == whole.info
    model, store = whole.model, streamed.store
    dense = [model(**batch).logits for batch in held]
    result = prune(model, _stack(model), _batches(1, 3, 3, 3, 3), options)
    model.save_pretrained(tmp_path / "whole")
    writer = ShardWriter(tmp_path / "streamed", len(store.names) + 1)
    most: list[int] = []

    def save(index: int) -> None:
        writer.write(store.tensors(index))
        most.append(sum(not p.is_meta for block in store.stack.blocks for p in block.parameters()))

    with prune_streamed(store, _batches(1, 3, 3, 3, 3), held, options, save) as (found, passage):
        with passage.answering(DENSE):
            assert all(torch.equal(store.model(**b).logits, was) for b, was in zip(held, dense, strict=True))
        with passage.answering(PRUNED):
            assert all(torch.equal(store.model(**b).logits, model(**b).logits) for b in held)
    writer.finish(store.model)
    assert found == result
    assert most == [len(store.names[0])] * 2  # never a second block
    a, b = _weights(tmp_path / "whole"), _weights(tmp_path / "streamed")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "streamed" / name).read_text()
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "streamed", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again.eval()(**held[0]).logits, model(**held[0]).logits)


def _stack(model: torch.nn.Module):
    from cohomcli.models.layout import find_stacks

    return find_stacks(model).stacks[0]


def test_a_checkpoint_without_the_prefix_and_in_half_precision_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["gpt2"](**FAMILIES["gpt2"])).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    bare = {key.removeprefix("transformer."): v for key, v in load_file(tmp_path / "model.safetensors").items()}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert open_streamed(resolve(str(tmp_path)), OPTIONS).info == load(resolve(str(tmp_path)), OPTIONS).info


def _run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["prune", *FAST, *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_streams_on_request_and_when_a_model_does_not_fit(capsys, tmp_path: Path, monkeypatch) -> None:
    documents = []
    for stream, fits in (("never", True), ("always", True), ("auto", False)):
        with nullcontext() if fits else monkeypatch.context() as patch:
            if patch is not None:
                patch.setattr("cohomcli.models.streamed.load_bytes", lambda folder, config: 2**60)
            code, out, err = _run(
                capsys, "-m", "tiny-gpt", "--method", "wanda", "--stream", stream, "--no-exactness", "--output-dir",
                str(tmp_path / stream), "--json",
            )  # fmt: skip
        assert code == 0, err
        assert ("does not fit" in err) is not fits
        documents.append(json.loads(out))
    whole, *streamed = documents
    names = _weights(Path(whole["run"]) / "model")
    masks = load_file(Path(whole["run"]) / "model" / "masks.safetensors")
    for one in streamed:
        assert one["pruning"] == whole["pruning"]
        assert one["model_info"] == whole["model_info"]
        assert any("left out" in note for note in one["notes"])
        folder = Path(one["run"]) / "model"
        found = load_file(folder / "masks.safetensors")
        assert found.keys() == masks.keys()
        assert all(torch.equal(found[name], masks[name]) for name in masks)
        assert all(torch.equal(value, names[name]) for name, value in _weights(folder).items())
        assert (folder / "tokenizer.json").exists()
        assert (folder / "cohom_prune.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["--pattern", "heads:0.5"], 2, "cannot prune"),
        (["--pattern", "blocks:0.5"], 2, "cannot prune"),
        (["--allocation", "owl"], 2, "owl"),
        (["--sweep", "0.3"], 2, "--sweep"),
        (["--topology"], 2, "--topology"),
        (["--protect", "circuit.json"], 2, "--protect"),
        (["--device", "meta"], 2, "device"),
    ],
)
def test_what_needs_the_whole_model_is_refused(
    capsys, tmp_path: Path, arguments: list[str], code: int, fragment: str
) -> None:
    got, out, err = _run(
        capsys, "-m", "tiny-gpt", "--stream", "always", *arguments, "--output-dir", str(tmp_path / "o")
    )
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert fragment in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("damage", ["missing", "truncated", "other", "nan", "left over"])
def test_damaged_shards_are_refused_as_in_memory(folder: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(folder, tmp_path / "m")
    shard = sorted((tmp_path / "m").glob("model-*.safetensors"))[1]
    tensors = load_file(shard)
    name = next(iter(tensors))
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-4])
    elif damage == "left over":
        save_file(tensors | {"stranger.weight": torch.zeros(2)}, shard)
    elif damage == "nan":
        save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, shard)
    else:
        save_file(tensors | {name: torch.zeros(3, 3)}, shard)
    messages = []
    for door in (load, open_streamed):
        with pytest.raises(InputRefused) as caught:
            door(resolve(str(tmp_path / "m")), OPTIONS)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_models_whose_blocks_need_each_other_and_single_files_are_refused(tmp_path: Path) -> None:
    from cohomcli.nn import CohomologicalTransformer

    CohomologicalTransformer(vocab_size=40, dim=16, sequence_dim=8, causal=True).save_pretrained(tmp_path / "own")
    with pytest.raises(InputRefused, match="neighbours"):
        open_streamed(resolve(str(tmp_path / "own")), OPTIONS)
    torch.save({"a": torch.zeros(2)}, tmp_path / "some.pt")
    with pytest.raises(CohomError, match="--stream"):
        open_streamed(resolve(str(tmp_path / "some.pt")), OPTIONS)
