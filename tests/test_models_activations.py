"""Activations against transformers' own hidden states and hand-placed hooks, one text at a time."""

import numpy as np
import pytest
import tinymodels
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from tinymodels import DECODERS, HIDDEN, MASKED, PICO, SENTENCES, SEQ2SEQ

from cohomcli.errors import AnalysisIncomplete, InputRefused, UsageError
from cohomcli.models.activations import collect
from cohomcli.models.batching import plan
from cohomcli.models.load import load
from cohomcli.models.pooling import pool
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import ActivationOptions, LoadedModel, LoadOptions

TEXTS = list(SENTENCES)


def run(name, texts=TEXTS, **options):
    return collect(tinymodels.loaded(name), texts, ActivationOptions(**options))


def close(first, second, tolerance=1e-5):
    return np.abs(first - second).max() <= tolerance * max(np.abs(second).max(), 1e-30)


def pooled(states, how):
    """The pooling of one unpadded text, written out: states is (1, T, d)."""
    return {"last": states[0, -1], "cls": states[0, 0], "mean": states[0].mean(dim=0)}[how].numpy()


def block_list(model, name):
    """The blocks by the name each architecture gives them, not by our search."""
    base = model.base_model
    return {
        "gpt2": lambda: base.h, "gpt_neo": lambda: base.h, "opt": lambda: base.decoder.layers,
        "opt-350m": lambda: base.decoder.layers, "bert": lambda: base.encoder.layer,
        "roberta": lambda: base.encoder.layer, "electra": lambda: base.encoder.layer,
        "distilbert": lambda: base.transformer.layer,
    }.get(name, lambda: base.layers)()  # fmt: skip


def first(output):
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def truth(name, text, how):
    """Layer name -> pooled vector of one text, from `output_hidden_states` and, for the last block, a plain hook."""
    model = tinymodels.build(name)
    ids = torch.tensor([tinymodels.loaded(name).tokenizer(text)["input_ids"]])
    last = []
    blocks = None if name == "albert" else block_list(model, name)
    handle = blocks[-1].register_forward_hook(lambda m, a, o: last.append(first(o))) if blocks else None
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    if handle:
        handle.remove()
    vectors = {"embedding": states[0], **{f"layer_{i}": s for i, s in enumerate(states[1:-1])}}
    vectors[f"layer_{len(states) - 2}"] = last[0] if last else states[-1]
    if name in DECODERS and name != "opt-350m":
        vectors["final_norm"] = states[-1]
    return {key: pooled(value, how) for key, value in vectors.items()}


@pytest.mark.parametrize("name", DECODERS + MASKED)
def test_layers_are_what_transformers_computes_for_each_text_alone(name):
    found = run(name)
    how = "last" if name in DECODERS else "mean"
    assert found.pooling == how
    for row, text in enumerate(TEXTS):
        expected = truth(name, text, how)
        assert list(found.layers) == list(expected), "names, in forward order"
        for layer, vector in expected.items():
            assert close(found.layers[layer][row], vector), (layer, row)
    assert {value.dtype for value in found.layers.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt"])
def test_the_last_block_is_not_the_final_norm(name):
    layers = run(name).layers
    assert not close(layers["layer_2"], layers["final_norm"], 1e-2)


def test_the_embedding_holds_the_positions_the_model_uses():
    model = tinymodels.build("gpt2")
    text = TEXTS[0]
    ids = tinymodels.loaded("gpt2").tokenizer(text)["input_ids"]
    expected = model.transformer.wte.weight[ids[-1]] + model.transformer.wpe.weight[len(ids) - 1]
    assert close(run("gpt2", [text], layers=("embedding",)).layers["embedding"][0], expected.detach().numpy())


@pytest.mark.parametrize("name", SEQ2SEQ)
@torch.no_grad()
def test_encoder_decoders_read_the_text_and_the_shifted_text(name):
    model, found = tinymodels.build(name), run(name)
    assert found.pooling == "encoder mean, decoder last"
    assert found.metrics is None
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([tinymodels.loaded(name).tokenizer(text)["input_ids"]])
        out = model(input_ids=ids, labels=ids, output_hidden_states=True)  # labels: transformers shifts them itself
        sides = (("encoder", out.encoder_hidden_states, "mean"), ("decoder", out.decoder_hidden_states, "last"))
        for side, states, how in sides:
            n = 2 if side == "encoder" else 3
            names = [
                "embedding",
                *(f"layer_{i}" for i in range(n - 1)),
                "final_norm" if name == "t5" else f"layer_{n - 1}",
            ]
            for layer, state in zip(names, states, strict=True):
                assert close(found.layers[f"{side}.{layer}"][row], pooled(state, how)), (side, layer)
    assert "decoder.layer_2" in found.layers
    assert ("encoder.final_norm" in found.layers) == (name == "t5")


@pytest.mark.parametrize("name", list(PICO))
@pytest.mark.parametrize("pooling", ["last", "cls", "mean"])
def test_batches_do_not_change_a_text(name, pooling):
    together = run(name, pooling=pooling, sites=("block", "attention", "mlp"))
    alone = run(name, pooling=pooling, sites=("block", "attention", "mlp"), token_budget=1)
    pairs = run(name, pooling=pooling, sites=("block", "attention", "mlp"), token_budget=70)
    assert list(together.layers) == list(alone.layers) == list(pairs.layers)
    for layer, vectors in alone.layers.items():
        assert close(together.layers[layer], vectors), layer
        assert close(pairs.layers[layer], vectors), layer


@pytest.mark.parametrize("name", ["FNet", "ConvBert"])
def test_models_that_see_padding_in_spite_of_the_mask_get_none(name, tmp_path):
    config = getattr(hf, f"{name}Config")(
        vocab_size=tinymodels.VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    getattr(hf, f"{name}ForMaskedLM")(config).save_pretrained(tmp_path)
    tinymodels.tokenizer("masked").save_pretrained(tmp_path)
    model = load(resolve(str(tmp_path)), LoadOptions())
    options = {"perplexity": True, "mask_positions": 2}
    together = collect(model, TEXTS + TEXTS[::-1], ActivationOptions(**options))
    alone = collect(model, TEXTS + TEXTS[::-1], ActivationOptions(token_budget=1, **options))
    for layer, vectors in alone.layers.items():
        assert close(together.layers[layer], vectors), layer
    assert together.metrics.loss == pytest.approx(alone.metrics.loss, rel=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_rows_follow_the_texts(name):
    order = np.random.default_rng(0).permutation(len(TEXTS))
    straight, shuffled = run(name), run(name, [TEXTS[i] for i in order])
    for layer, vectors in straight.layers.items():
        assert close(shuffled.layers[layer], vectors[order]), layer


@pytest.mark.parametrize("name", ["gpt2", "opt", "roberta", "bart"])
def test_the_side_a_tokenizer_pads_on_does_not_matter(name, tmp_path):
    folder = tinymodels.save(name, tmp_path / name)
    tokenizer = tinymodels.loaded(name).tokenizer.__class__.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tinymodels.loaded(name).tokenizer.pad_token
    left = LoadedModel(tinymodels.loaded(name).model, tokenizer, tinymodels.loaded(name).info)
    assert left.tokenizer.padding_side == "left"
    expected = run(name)
    for layer, vectors in collect(left, TEXTS, ActivationOptions()).layers.items():
        assert np.array_equal(vectors, expected.layers[layer])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=8), st.integers(0, 2**31))
def test_pooling_finds_the_real_tokens_wherever_the_padding_is(rows, seed):
    width = max(left + real for left, real in rows) + 2
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    states = torch.full((len(rows), width, 3), float("nan"))
    values = torch.randn(len(rows), width, 3, generator=torch.Generator().manual_seed(seed))
    for row, (left, real) in enumerate(rows):
        mask[row, left : left + real] = 1
        states[row, left : left + real] = values[row, :real]
    for how in ("last", "cls", "mean"):
        for row, (_, real) in enumerate(rows):
            assert np.allclose(pool(states, mask, how)[row], pooled(values[row : row + 1, :real], how), atol=1e-6)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 4000), st.booleans())
def test_batches_hold_every_row_once_within_the_budget(lengths, budget, equal):
    batches = plan(lengths, budget, equal)
    assert not equal or all(len({lengths[row] for row in rows}) == 1 for rows in batches)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= budget
    widths = [max(lengths[row] for row in rows) for rows in batches]
    assert widths == sorted(widths, reverse=True)


PRE_NORM = ["gpt2", "gpt_neo", "gpt_neox", "opt", "llama", "mistral", "qwen2", "phi"]


@pytest.mark.parametrize("name", PRE_NORM)
def test_attention_and_mlp_add_up_to_the_residual_stream(name):
    layers = run(name, sites=("block", "attention", "mlp")).layers
    before = layers["embedding"]
    for index in range(tinymodels.loaded(name).info.n_layer):
        after = before + layers[f"layer_{index}.attention"] + layers[f"layer_{index}.mlp"]
        assert close(after, layers[f"layer_{index}"])
        before = layers[f"layer_{index}"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "albert", "opt-350m"])
def test_attention_and_mlp_enter_the_norms_of_post_norm_blocks(name):
    layers = {
        key: torch.tensor(value)
        for key, value in run(name, pooling="last", sites=("block", "attention", "mlp")).layers.items()
    }
    model = tinymodels.build(name)
    before = layers["embedding"]
    for index in range(tinymodels.loaded(name).info.n_layer):
        if name == "albert":
            block = model.albert.encoder.albert_layer_groups[index // 2].albert_layers[0]
            norms = (block.attention.LayerNorm, block.full_layer_layer_norm)
        else:
            block = block_list(model, name)[index]
            norms = {
                "distilbert": lambda b: (b.sa_layer_norm, b.output_layer_norm),
                "opt-350m": lambda b: (b.self_attn_layer_norm, b.final_layer_norm),
            }.get(name, lambda b: (b.attention.output.LayerNorm, b.output.LayerNorm))(block)
        middle = norms[0](before + layers[f"layer_{index}.attention"])
        after = norms[1](middle + layers[f"layer_{index}.mlp"])
        assert close(after.numpy(), layers[f"layer_{index}"].numpy())
        before = layers[f"layer_{index}"]


@pytest.mark.parametrize("name", ["t5", "bart", "gemma2"])
def test_sites_of_the_other_architectures_are_their_modules_outputs(name):
    model, text = tinymodels.build(name), TEXTS[3]
    ids = torch.tensor([tinymodels.loaded(name).tokenizer(text)["input_ids"]])
    seen = {}
    parts = {
        "t5": lambda: {
            "encoder.layer_1.attention": model.encoder.block[1].layer[0].SelfAttention.o,
            "decoder.layer_2.mlp": model.decoder.block[2].layer[2].DenseReluDense.wo,
        },
        "bart": lambda: {
            "encoder.layer_1.attention": model.model.encoder.layers[1].self_attn.out_proj,
            "decoder.layer_2.mlp": model.model.decoder.layers[2].fc2,
        },
        "gemma2": lambda: {
            "layer_1.attention": model.model.layers[1].self_attn.o_proj,
            "layer_2.mlp": model.model.layers[2].mlp.down_proj,
        },
    }[name]()
    for key, part in parts.items():
        part.register_forward_hook(lambda m, a, o, key=key: seen.__setitem__(key, o))
    with torch.no_grad():
        model(input_ids=ids, **({"labels": ids} if name in SEQ2SEQ else {}))
    found = run(name, [text], pooling="last", layers=tuple(parts)).layers
    assert set(found) == set(parts)
    for key, value in seen.items():
        assert close(found[key][0], pooled(value, "last"))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (("all",), ["embedding", "layer_0", "layer_1", "layer_2", "final_norm"]),
        (("final", "embedding"), ["embedding", "final_norm"]),
        (("-1",), ["layer_2"]),
        (("layer_1", "1"), ["layer_1"]),
        (("0-1",), ["layer_0", "layer_1"]),
        (("layer_0.mlp", "layer_2_ffn", "layer_1_attention"), ["layer_0.mlp", "layer_1.attention", "layer_2.mlp"]),
    ],
)
def test_selected_layers(request_, expected):
    found = run("gpt2", layers=request_).layers
    everything = run("gpt2", sites=("block", "attention", "mlp")).layers
    assert list(found) == expected
    for layer, vectors in found.items():
        assert close(vectors, everything[layer], 1e-6)


def test_selections_on_encoder_decoders_and_models_without_final_norm():
    assert list(run("t5", layers=("1",)).layers) == ["encoder.layer_1", "decoder.layer_1"]
    assert list(run("t5", layers=("decoder.-1", "encoder.embedding")).layers) == [
        "encoder.embedding",
        "decoder.layer_2",
    ]
    assert list(run("t5", layers=("encoder.0",)).layers) == ["encoder.layer_0"]
    assert list(run("bert", layers=("final",)).layers) == ["layer_2"]
    assert list(run("bert", sites=("attention",)).layers) == [f"layer_{i}.attention" for i in range(3)]


@pytest.mark.parametrize(
    ("name", "request_", "says"),
    [
        ("gpt2", "layer_3", "unknown layer 'layer_3'; the model has layer_0 to layer_2, embedding, final_norm"),
        ("gpt2", "-4", "layer_0 to layer_2"),
        ("gpt2", "2-1", "layer_0 to layer_2"),
        ("gpt2", "embeding", "did you mean embedding"),
        ("bert", "final_norm", "unknown layer 'final_norm'"),
        ("gpt2", "encoder.0", "unknown layer"),
        ("gpt2", "", "unknown layer"),
        ("t5", "encoder.layer_2", "encoder.layer_0 to encoder.layer_1 and decoder.layer_0 to decoder.layer_2"),
    ],
)
def test_unknown_layers(name, request_, says):
    with pytest.raises(UsageError, match=says):
        run(name, layers=(request_,))


def test_only_the_blocks_that_are_needed_run():
    counted = []
    model = tinymodels.loaded("llama").model
    handles = [b.register_forward_hook(lambda *_, i=i: counted.append(i)) for i, b in enumerate(model.model.layers)]
    run("llama", layers=("0-1",))
    for handle in handles:
        handle.remove()
    assert counted == [0, 1, 2] * 3 + [0, 1], "the probes of the structure run through, the batch stops after block 1"


def test_the_head_never_runs_unless_asked(monkeypatch):
    ran = []
    handle = tinymodels.loaded("gpt2").model.lm_head.register_forward_hook(lambda *_: ran.append(1))
    run("gpt2")
    assert not ran
    run("gpt2", perplexity=True)
    handle.remove()
    assert ran


def test_long_texts_are_cut_with_their_special_tokens():
    long = " ".join(TEXTS)
    found = run("bert", [long, "Hell is empty."], max_length=500, pooling="last")
    assert found.n_truncated == 1
    assert found.notes == (
        "max_length 500 was lowered to 64, the most this model reads",
        "1 of 2 texts were cut at 64 tokens",
    )
    tokenizer = tinymodels.loaded("bert").tokenizer
    assert found.n_tokens == 64 + len(tokenizer("Hell is empty.")["input_ids"])
    ids = tokenizer(long, truncation=True, max_length=64)["input_ids"]
    assert ids[-1] == tokenizer.sep_token_id
    model = tinymodels.build("bert")
    with torch.no_grad():
        state = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[0]
    assert close(found.layers["embedding"][0], pooled(state, "last"))


@pytest.mark.parametrize("name", ["roberta", "opt", "gpt2", "bart", "distilbert"])
def test_every_position_the_info_promises_can_be_read(name):
    found = run(name, [" ".join(TEXTS)], max_length=10**6)
    assert found.n_tokens == tinymodels.POSITIONS
    assert found.n_truncated == 1


def test_cls_pooling_of_a_decoder_is_noted():
    assert "sees nothing of the rest" in " ".join(run("gpt2", pooling="cls").notes)
    assert not run("bert", pooling="cls").notes


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_texts_without_tokens(name):
    with pytest.raises(InputRefused, match="text 2 has no tokens"):
        run(name, ["Hell is empty.", ""])
    with pytest.raises(InputRefused, match="no texts"):
        run(name, [])


def test_options_that_make_no_sense():
    for options, says in (
        ({"pooling": "max"}, "unknown pooling"),
        ({"sites": ("blok",)}, "did you mean block"),
        ({"sites": ()}, "no sites"),
        ({"max_length": 0}, "no room"),
    ):
        with pytest.raises(UsageError, match=says):
            run("gpt2", **options)
    with pytest.raises(UsageError, match="max_length 2 leaves no room beside 2 special tokens"):
        run("bert", max_length=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_layer_that_overflows_is_named(value, tmp_path):
    loaded = load(resolve(str(tinymodels.save("llama", tmp_path / "m"))), LoadOptions())
    loaded.model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output + value)
    assert collect(loaded, TEXTS, ActivationOptions(layers=("0",))).layers
    with pytest.raises(AnalysisIncomplete, match=r"layer_1 has NaN or infinite activations \(text \d+\)"):
        collect(loaded, TEXTS, ActivationOptions())


def test_progress_counts_every_text():
    seen = []
    collect(tinymodels.loaded("gpt2"), TEXTS, ActivationOptions(token_budget=60), lambda *step: seen.append(step))
    assert seen[-1] == ("extract", len(TEXTS), len(TEXTS))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_widths_are_the_models():
    assert {value.shape for value in run("opt-350m").layers.values()} == {(len(TEXTS), HIDDEN)}
