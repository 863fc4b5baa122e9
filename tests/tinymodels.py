"""Pico models of many architectures, built from their configurations, for tests of the model door."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from cohomcli.models.load import load
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadedModel, LoadOptions

SENTENCES = (
    "To be, or not to be, that is the question.",
    "All the world's a stage, and all the men and women merely players.",
    "Brevity is the soul of wit.",
    "The quality of mercy is not strained; it droppeth as the gentle rain from heaven upon the place beneath.",
    "Now is the winter of our discontent made glorious summer by this sun of York.",
    "Hell is empty.",
    "What's in a name? That which we call a rose by any other name would smell as sweet.",
    "We are such stuff as dreams are made on, and our little life is rounded with a sleep.",
    "Nothing will come of nothing.",
    "If music be the food of love, play on.",
)
VOCAB = 320
HIDDEN = 16
POSITIONS = 64


@dataclass(frozen=True)
class Pico:
    """How to build one architecture: its class, its settings, which tokenizer it reads."""

    model: str
    config: Callable[..., Any]
    settings: dict[str, Any]
    tokenizer: str = "causal"


def _llama_like(**extra: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": POSITIONS,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, **extra,
    }  # fmt: skip


def _bert_like(**extra: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 2, "max_position_embeddings": POSITIONS, "pad_token_id": 1, **extra,
    }  # fmt: skip


_IDS = {"bos_token_id": 0, "eos_token_id": 0}
PICO: dict[str, Pico] = {
    "gpt2": Pico(
        "GPT2LMHeadModel",
        hf.GPT2Config,
        {"vocab_size": VOCAB, "n_embd": HIDDEN, "n_layer": 3, "n_head": 2, "n_positions": POSITIONS, **_IDS},
    ),
    "gpt_neo": Pico(
        "GPTNeoForCausalLM",
        hf.GPTNeoConfig,
        {
            "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_layers": 4, "num_heads": 2, "window_size": 8,
            "attention_types": [[["global", "local"], 2]], "max_position_embeddings": POSITIONS, **_IDS,
        },
    ),
    "gpt_neox": Pico("GPTNeoXForCausalLM", hf.GPTNeoXConfig, _llama_like(num_key_value_heads=2)),
    "opt": Pico(
        "OPTForCausalLM",
        hf.OPTConfig,
        {
            "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 32,
            "max_position_embeddings": POSITIONS, "word_embed_proj_dim": HIDDEN, "pad_token_id": 1, **_IDS,
        },
    ),
    "opt-350m": Pico(
        "OPTForCausalLM",
        hf.OPTConfig,
        {
            "vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 2, "ffn_dim": 32,
            "max_position_embeddings": POSITIONS, "word_embed_proj_dim": 8, "do_layer_norm_before": False,
            "pad_token_id": 1, **_IDS,
        },
    ),
    "llama": Pico("LlamaForCausalLM", hf.LlamaConfig, _llama_like(tie_word_embeddings=True)),
    "mistral": Pico("MistralForCausalLM", hf.MistralConfig, _llama_like(sliding_window=8, head_dim=8)),
    "qwen2": Pico("Qwen2ForCausalLM", hf.Qwen2Config, _llama_like()),
    "gemma2": Pico(
        "Gemma2ForCausalLM", hf.Gemma2Config, _llama_like(head_dim=8, query_pre_attn_scalar=8, sliding_window=8)
    ),
    "phi": Pico("PhiForCausalLM", hf.PhiConfig, _llama_like(num_key_value_heads=2)),
    "bert": Pico("BertForMaskedLM", hf.BertConfig, _bert_like(), "masked"),
    "roberta": Pico(
        "RobertaForMaskedLM", hf.RobertaConfig, _bert_like(max_position_embeddings=POSITIONS + 2), "masked"
    ),
    "distilbert": Pico(
        "DistilBertForMaskedLM",
        hf.DistilBertConfig,
        {
            "vocab_size": VOCAB, "dim": HIDDEN, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "pad_token_id": 1,
            "max_position_embeddings": POSITIONS,
        },
        "masked",
    ),
    "electra": Pico("ElectraForMaskedLM", hf.ElectraConfig, _bert_like(embedding_size=8), "masked"),
    "albert": Pico(
        "AlbertForMaskedLM",
        hf.AlbertConfig,
        _bert_like(embedding_size=8, num_hidden_layers=4, num_hidden_groups=2),
        "masked",
    ),
    "t5": Pico(
        "T5ForConditionalGeneration",
        hf.T5Config,
        {
            "vocab_size": VOCAB, "d_model": HIDDEN, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3,
            "num_heads": 2, "pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1,
        },
        "seq2seq",
    ),
    "bart": Pico(
        "BartForConditionalGeneration",
        hf.BartConfig,
        {
            "vocab_size": VOCAB, "d_model": HIDDEN, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 1,
            "max_position_embeddings": POSITIONS, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0,
            "forced_eos_token_id": None,
        },
        "seq2seq",
    ),
}  # fmt: skip
DECODERS = [name for name, pico in PICO.items() if pico.tokenizer == "causal"]
MASKED = [name for name, pico in PICO.items() if pico.tokenizer == "masked"]
SEQ2SEQ = [name for name, pico in PICO.items() if pico.tokenizer == "seq2seq"]


def build(name: str, seed: int = 0, **overrides: Any) -> Any:
    """A pico model in eval mode with weights large enough that layers differ; `overrides` change its configuration."""
    pico = PICO[name]
    config = pico.config(**{**pico.settings, **overrides})
    torch.manual_seed(seed)
    model = getattr(hf, pico.model)(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.copy_(torch.randn_like(value) * 0.3 + (1.0 if "norm" in key.lower() and "weight" in key else 0.0))
    return model


@cache
def tokenizer(kind: str) -> Any:
    """A byte-level BPE tokenizer of at most VOCAB ids; "causal" adds no special tokens and has no padding token."""
    specials = ["<end>", "<pad>", "<mask>", "<sep>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    settings: dict[str, Any] = {"eos_token": "<end>"}
    if kind == "masked":
        inner.post_processor = processors.TemplateProcessing(
            "<end> $A <sep>", special_tokens=[("<end>", 0), ("<sep>", 3)]
        )
        settings = {"cls_token": "<end>", "sep_token": "<sep>", "pad_token": "<pad>", "mask_token": "<mask>"}
    if kind == "seq2seq":
        inner.post_processor = processors.TemplateProcessing("$A <end>", special_tokens=[("<end>", 0)])
        settings |= {"pad_token": "<pad>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=inner, **settings)


def save(name: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Build a pico model and save it with its tokenizer; returns the folder."""
    hf.utils.logging.disable_progress_bar()
    model = build(name, seed, **overrides)
    model.save_pretrained(folder)
    tokenizer(PICO[name].tokenizer).save_pretrained(folder)
    return folder


_ROOT = tempfile.TemporaryDirectory(prefix="cohom-pico-")


@cache
def saved(name: str) -> Path:
    """The folder of an unchanged pico model, built once per test session; tests must not write into it."""
    return save(name, Path(_ROOT.name) / name)


@cache
def loaded(name: str) -> LoadedModel:
    """The unchanged pico model, through our own door."""
    return load(resolve(str(saved(name))), LoadOptions())
