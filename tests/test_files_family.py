"""Architectures told from names and shapes: the inferred model computes what the original computes, or says why not."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinymodels
import torch
import transformers as hf
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.files.family import FamilyMatch, NoMatch, infer_family
from cohomcli.models.files.heads import rotary_base
from cohomcli.models.files.opened import FileOptions, OpenedFile, open_model_file

IDS = torch.tensor([[5, 9, 3, 17, 6]])
PIXELS = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
NO_IDS = {"bos_token_id": None, "eos_token_id": None}
TWO = {"vocab_size": 40, "num_hidden_layers": 2, "intermediate_size": 48}


def gpt2(**extra: Any) -> hf.GPT2Config:
    return hf.GPT2Config(n_layer=2, n_embd=768, n_head=12, n_inner=48, vocab_size=40, n_positions=16, **NO_IDS, **extra)


def roberta(**extra: Any) -> hf.RobertaConfig:
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "max_position_embeddings": 66, "type_vocab_size": 1}
    return hf.RobertaConfig(layer_norm_eps=1e-5, **sizes, **TWO, **extra)


def bert(**extra: Any) -> hf.BertConfig:
    return hf.BertConfig(hidden_size=128, num_attention_heads=2, **TWO, **extra)


def opt(**extra: Any) -> hf.OPTConfig:
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "ffn_dim": 48, "max_position_embeddings": 20}
    return hf.OPTConfig(num_hidden_layers=2, vocab_size=40, **sizes, **extra, **NO_IDS)


def vit(**extra: Any) -> hf.ViTConfig:
    sizes = {"num_hidden_layers": 2, "intermediate_size": 48, "image_size": 16, "patch_size": 4}
    return hf.ViTConfig(hidden_size=192, num_attention_heads=3, **sizes, **extra)


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(gpt2()),
    "gpt2-untied": lambda: hf.GPT2LMHeadModel(gpt2(tie_word_embeddings=False)),
    "neox": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(
            hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=48, vocab_size=40, **NO_IDS
        )
    ),
    "opt": lambda: hf.OPTForCausalLM(opt(word_embed_proj_dim=1024)),
    "opt-post-norm": lambda: hf.OPTForCausalLM(opt(word_embed_proj_dim=512, do_layer_norm_before=False)),
    "bert-masked": lambda: hf.BertForMaskedLM(bert()),
    "bert-bare": lambda: hf.BertModel(bert()),
    "bert-no-pooler": lambda: hf.BertModel(bert(), add_pooling_layer=False),
    "bert-classifier": lambda: hf.BertForSequenceClassification(bert(num_labels=3)),
    "roberta-masked": lambda: hf.RobertaForMaskedLM(roberta()),
    "roberta-bare": lambda: hf.RobertaModel(roberta()),
    "roberta-classifier": lambda: hf.RobertaForSequenceClassification(roberta()),
    "distilbert": lambda: hf.DistilBertForMaskedLM(
        hf.DistilBertConfig(dim=768, n_layers=1, n_heads=12, hidden_dim=48, vocab_size=40)
    ),
    "vit-classifier": lambda: hf.ViTForImageClassification(vit(num_labels=5)),
    "bert-tokens": lambda: hf.BertForTokenClassification(bert(num_labels=4)),
    "bert-answers": lambda: hf.BertForQuestionAnswering(bert()),
    "roberta-tokens": lambda: hf.RobertaForTokenClassification(roberta(num_labels=4)),
    "distilbert-classifier": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(dim=768, n_layers=1, n_heads=12, hidden_dim=48, vocab_size=40)
    ),
    "vit-bare": lambda: hf.ViTModel(vit()),
}


def randomised(model: Any) -> Any:
    """Weights large enough that a wrong setting shows in the output."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn_like(value) * 0.2)
    return model.eval()


def output(model: Any) -> Tensor:
    given = {"pixel_values": PIXELS} if "ViT" in type(model).__name__ else {"input_ids": IDS}
    with torch.no_grad():
        return model(**given)[0]


def opened(content: Any, tmp_path: Path, options: FileOptions | None = None) -> OpenedFile:
    torch.save(content, tmp_path / "weights")
    return open_model_file(tmp_path / "weights", options)


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("name", MODELS)
def test_the_inferred_model_computes_the_same(name: str, prefix: str, tmp_path: Path) -> None:
    model = randomised(MODELS[name]())
    found = opened({f"{prefix}{key}": value for key, value in model.state_dict().items()}, tmp_path)
    assert found.built_from == "family", found.why
    assert type(found.model) is type(model)
    assert torch.equal(output(found.model), output(model))
    assert any("attention heads" in text for text in found.assumptions)


def test_untied_heads_stay_apart_and_tied_ones_together(tmp_path: Path) -> None:
    for name, tied in (("gpt2", True), ("gpt2-untied", False)):
        found: Any = opened(randomised(MODELS[name]()).state_dict(), tmp_path).model
        assert (found.lm_head.weight is found.transformer.wte.weight) is tied


class NanoAttention(nn.Module):
    """As nanoGPT writes it: linear layers, no biases."""

    def __init__(self, width: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))


class NanoBlock(nn.Module):
    def __init__(self, width: int, n_head: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attn = NanoAttention(width, n_head)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width, bias=False), "c_proj": nn.Linear(4 * width, width, bias=False)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class NanoGpt(nn.Module):
    def __init__(self, width: int = 24, n_head: int = 3) -> None:
        super().__init__()
        parts = {
            "wte": nn.Embedding(40, width),
            "wpe": nn.Embedding(16, width),
            "ln_f": nn.LayerNorm(width, bias=False),
        }
        self.transformer = nn.ModuleDict({**parts, "h": nn.ModuleList(NanoBlock(width, n_head) for _ in range(2))})
        self.lm_head = nn.Linear(width, 40, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def test_a_nanogpt_checkpoint_runs_with_its_own_arguments(tmp_path: Path) -> None:
    model = randomised(NanoGpt())
    state = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}
    found: Any = opened({"model": state, "model_args": {"n_head": 3, "n_layer": 2}, "iter_num": 5}, tmp_path)
    assert found.built_from == "family"
    assert not any("attention heads" in text for text in found.assumptions)
    with torch.no_grad():
        assert torch.allclose(found.model(IDS).logits, model(IDS), atol=1e-5)
    config = {**found.config, "n_head": 1}
    (tmp_path / "one.json").write_text(json.dumps(config))
    wrong: Any = open_model_file(tmp_path / "weights", FileOptions(config_json=tmp_path / "one.json"))
    assert not torch.allclose(wrong.model(IDS).logits, model(IDS), atol=1e-5)


@pytest.mark.parametrize("name", [*tinymodels.PICO])
def test_with_its_config_every_architecture_is_built(name: str, tmp_path: Path) -> None:
    model = tinymodels.build(name)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    state = {f"module.model.{key}": value for key, value in model.state_dict().items()}
    found: Any = opened({"state_dict": state}, tmp_path, FileOptions(config_json=tmp_path / "config.json"))
    given = {"input_ids": IDS, **({"decoder_input_ids": IDS} if name in tinymodels.SEQ2SEQ else {})}
    with torch.no_grad():
        assert torch.equal(found.model(**given)[0], model(**given)[0])


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "llama", "bert", "t5"])
def test_a_pickled_hugging_face_model_brings_its_config(name: str, tmp_path: Path) -> None:
    model = tinymodels.build(name)
    found: Any = opened(model, tmp_path)
    given = {"input_ids": IDS, **({"decoder_input_ids": IDS} if name in tinymodels.SEQ2SEQ else {})}
    assert found.built_from == "pickled-config"
    assert found.assumptions == ()
    with torch.no_grad():
        assert torch.equal(found.model(**given)[0], model(**given)[0])


class Wrapper(nn.Module):
    """Holds a model as DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_wrapper_around_a_pickled_model_is_looked_through(tmp_path: Path) -> None:
    model = tinymodels.build("gpt2")
    found: Any = opened(Wrapper(model), tmp_path)
    assert found.built_from == "pickled-config"
    assert found.file.root_class.endswith("GPT2LMHeadModel")
    assert found.file.module_tree["transformer.h.0"].endswith("GPT2Block")
    with torch.no_grad():
        assert torch.equal(found.model(IDS)[0], model(IDS)[0])


def test_a_head_of_the_users_own_leaves_the_weights_and_says_so(tmp_path: Path) -> None:
    state = {**randomised(MODELS["bert-bare"]()).state_dict(), "my_head.weight": torch.ones(3)}
    found = opened(state, tmp_path)
    assert found.model is None
    assert "left over ('my_head.weight')" in found.why
    assert "my_head.weight" in found.file.tensors


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_kernels", True), ("_attn_implementation", "kernels-community/evil"), ("auto_map", {"AutoModel": "a.Evil"}),
     ("experts_implementation", "evil/kernel"), ("vocab_size", 10**11), ("n_embd", 10**6), ("n_layer", 10**6)],
)  # fmt: skip
def test_a_hostile_configuration_in_a_pickle_is_harmless(key: str, value: object, tmp_path: Path) -> None:
    model = tinymodels.build("gpt2")
    object.__setattr__(model.config, key, value)
    found: Any = opened(model, tmp_path)
    if isinstance(value, int) and value > 1:
        assert found.model is None
        assert found.why
    else:
        with torch.no_grad():
            assert torch.equal(found.model(IDS)[0], tinymodels.build("gpt2")(IDS)[0])


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("gpt2", "number of attention heads"), ("llama", "rotary base"), ("bert", "number of attention heads"),
     ("opt", "number of attention heads"), ("gpt_neox", "number of attention heads"), ("qwen2", "rotary base")],
)  # fmt: skip
def test_what_the_weights_do_not_tell_is_asked_for(name: str, lacking: str, tmp_path: Path) -> None:
    found = opened(tinymodels.build(name).state_dict(), tmp_path)
    assert found.model is None
    assert lacking in found.why
    assert "--config-json" in found.hint


@pytest.mark.parametrize("name", ["electra", "albert", "bart", "t5", "gemma2", "phi", "gpt_neo"])
def test_relatives_are_not_mistaken_for_a_family(name: str, tmp_path: Path) -> None:
    found = opened(tinymodels.build(name).state_dict(), tmp_path)
    assert found.model is None
    assert "no architecture known" in found.why


def test_known_code_is_named() -> None:
    resnet = {"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}
    found = infer_family(resnet)
    assert isinstance(found, NoMatch)
    assert "ResNet" in found.why
    assert "--model-code" in found.hint


def llama_names(width: int, n_layer: int, vocabulary: int, inner: int, keys: int) -> dict[str, Tensor]:
    """The names and shapes of a Llama without the memory for it."""
    state = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    for i in range(n_layer):
        block = f"model.layers.{i}"
        state |= {f"{block}.self_attn.{n}_proj.weight": (width, width) for n in "qo"}
        state |= {f"{block}.self_attn.{n}_proj.weight": (keys, width) for n in "kv"}
        state |= {f"{block}.mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")}
        state |= {f"{block}.mlp.down_proj.weight": (width, inner)}
    return {name: torch.empty(shape, device="meta") for name, shape in state.items()}


def test_a_published_llama_is_known_and_an_ambiguous_one_is_not() -> None:
    known = infer_family(llama_names(2048, 22, 32000, 5632, 256))
    assert isinstance(known, FamilyMatch)
    assert known.config["num_attention_heads"] == 32
    assert known.config["num_key_value_heads"] == 4
    assert known.config["tie_word_embeddings"] is True
    assert isinstance(infer_family(llama_names(576, 30, 49152, 1536, 192)), NoMatch)  # SmolLM or SmolLM2


@pytest.mark.parametrize("base", [1e4, 5e5, 1e6])
def test_a_stored_rotary_table_tells_heads_and_base(base: float, tmp_path: Path) -> None:
    config = hf.LlamaConfig(
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_theta=base,
        rms_norm_eps=1e-6,
        **TWO,
        **NO_IDS,
    )
    model = randomised(hf.LlamaForCausalLM(config))
    table = base ** (-torch.arange(0, 16, 2) / 16)
    state = {**model.state_dict(), "model.layers.0.self_attn.rotary_emb.inv_freq": table}
    found: Any = opened(state, tmp_path)
    assert found.built_from == "family", found.why
    assert torch.equal(output(found.model), output(model))


@pytest.mark.parametrize("size", [4, 16, 128])
def test_rotary_bases_are_read_from_their_tables(size: int) -> None:
    for base in (10_000.0, 500_000.0, 1_000_000.0):
        table = torch.tensor([base ** (-2 * i / size) for i in range(size // 2)], dtype=torch.float32)
        found = rotary_base(table, size)
        assert found is not None
        assert math.isclose(found, base, rel_tol=1e-4)
        assert rotary_base(table * torch.linspace(1, 3, size // 2), size) != base
        assert rotary_base(table[1:], size) is None


@pytest.mark.parametrize("change", ["missing", "left over", "of another shape"])
def test_weights_that_do_not_fit_are_refused_in_one_line(change: str, tmp_path: Path) -> None:
    model = tinymodels.build("gpt2")
    model.config.save_pretrained(tmp_path)
    state = dict(model.state_dict())
    if change == "missing":
        del state["transformer.h.1.ln_1.weight"]
    if change == "left over":
        state["transformer.h.1.ln_9.weight"] = torch.ones(3)
    if change == "of another shape":
        state["transformer.ln_f.weight"] = torch.ones(3)
    with pytest.raises(InputRefused, match=change) as caught:
        opened(state, tmp_path, FileOptions(config_json=tmp_path / "config.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_type": 3}', "not json", '{"model_type": "unheard-of"}'])
def test_a_wrong_config_json_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(InputRefused):
        opened(tinymodels.build("gpt2").state_dict(), tmp_path, FileOptions(config_json=tmp_path / "c.json"))
