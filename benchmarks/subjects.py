"""What `benchmarks.autocast` compares on: small random models of ten architectures, and trained ones.

Random weights are uneven, as training leaves them: standard deviation gain / sqrt(fan-in) with a log-normal gain per
tensor (sigma 0.5), norms around 1, embeddings 0.25. LAYERS is split between encoder and decoder where there are both.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cohomcli.precision.capture import Example

LAYERS, HEADS, VOCABULARY = 4, 4, 1024
SURVEYED = 28  # as many as the command draws


@dataclass(frozen=True)
class Size:
    """The width of the random models and the tokens of a call."""

    width: int = 256
    tokens: int = 32
    layers: int = LAYERS


@dataclass(frozen=True)
class Subject:
    """A model with calibration, further calibration and held-out calls; `outputs` names what counts, None for all."""

    name: str
    model: nn.Module
    calibration: list[Example]
    heldout: list[Example]
    outputs: tuple[str, ...] | None = None
    surveyed: Sequence[Example] = ()


def _decoder(size: Size, **extra: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": size.width, "num_hidden_layers": size.layers,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * size.width, "max_position_embeddings": 2 * size.tokens, "use_cache": False,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, **extra,
    }  # fmt: skip


def configurations(size: Size) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Architecture to (model class, configuration class, settings)."""
    width, positions, inner = size.width, 2 * size.tokens, 4 * size.width
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    half = size.layers // 2
    gpt2 = {
        "vocab_size": VOCABULARY,
        "n_embd": width,
        "n_layer": size.layers,
        "n_head": HEADS,
        "n_positions": positions,
    }
    t5 = {
        "vocab_size": VOCABULARY, "d_model": width, "d_kv": width // HEADS, "d_ff": inner, "num_layers": half,
        "num_decoder_layers": half, "num_heads": HEADS, "decoder_start_token_id": 1, "use_cache": False,
    }  # fmt: skip
    bart = {
        "vocab_size": VOCABULARY, "d_model": width, "encoder_layers": half, "decoder_layers": half,
        "encoder_ffn_dim": inner, "decoder_ffn_dim": inner, "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS, "max_position_embeddings": positions, "decoder_start_token_id": 0,
        "forced_eos_token_id": None, "pad_token_id": 1, "use_cache": False, **ids,
    }  # fmt: skip
    distilbert = {
        "vocab_size": VOCABULARY, "dim": width, "n_layers": size.layers, "n_heads": HEADS, "hidden_dim": inner,
        "max_position_embeddings": positions,
    }  # fmt: skip
    vit = {
        "hidden_size": width, "num_hidden_layers": size.layers, "num_attention_heads": HEADS,
        "intermediate_size": inner, "image_size": 64, "patch_size": 8, "num_labels": 100,
    }  # fmt: skip
    opt = _decoder(size, ffn_dim=inner, word_embed_proj_dim=width)
    del opt["intermediate_size"]
    return {
        "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**gpt2, "use_cache": False, **ids}),
        "llama": ("LlamaForCausalLM", "LlamaConfig", _decoder(size, num_key_value_heads=2)),
        "mistral": (
            "MistralForCausalLM",
            "MistralConfig",
            _decoder(size, num_key_value_heads=1, sliding_window=size.tokens // 2),
        ),
        "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _decoder(size)),
        "opt": ("OPTForCausalLM", "OPTConfig", opt),
        "bert": ("BertForMaskedLM", "BertConfig", _decoder(size)),
        "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig", distilbert),
        "t5": ("T5ForConditionalGeneration", "T5Config", t5),
        "bart": ("BartForConditionalGeneration", "BartConfig", bart),
        "vit": ("ViTForImageClassification", "ViTConfig", vit),
    }


def random_subject(name: str, size: Size = Size(), seed: int = 0) -> Subject:
    """One of the ten architectures with four calibration, four held-out and SURVEYED further calibration inputs."""
    import transformers

    seed += zlib.crc32(name.encode()) % 1000  # no two architectures with the same numbers

    model_class, config_class, settings = configurations(size)[name]
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**settings)
    model = getattr(transformers, model_class)._from_config(config, attn_implementation="eager").eval()
    _uneven(model, seed)
    if name == "t5":  # its attention is not scaled by 1/sqrt(d): its queries are
        with torch.no_grad():
            for key, value in model.named_parameters():
                if key.endswith("Attention.q.weight"):
                    value.mul_((HEADS / size.width) ** 0.5)
    generator = torch.Generator().manual_seed(seed + 1)
    calls = [_random_call(name, size, generator) for _ in range(8 + SURVEYED)]
    return Subject(name, model, calls[:4], calls[4:8], ("logits",), calls[8:])


def _uneven(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for value in model.parameters():
            noise = torch.randn(value.shape, generator=generator)
            gain = math.exp(0.5 * float(torch.randn((), generator=generator)))
            if id(value) in embeddings:
                value.copy_(0.25 * noise)
            elif value.dim() > 1:
                fan_in = value.shape[0] if _reads_rows(model, value) else value[0].numel()
                value.copy_(noise * (gain / math.sqrt(fan_in)))
            else:
                value.copy_((1.0 if bool((value == 1).all()) else 0.0) + 0.1 * gain * noise)


def _reads_rows(model: nn.Module, value: torch.Tensor) -> bool:
    """GPT-2 stores its linear maps as (in, out)."""
    return any(type(m).__name__ == "Conv1D" and m.weight is value for m in model.modules())


def _random_call(name: str, size: Size, generator: torch.Generator) -> Example:
    if name == "vit":
        return Example((), {"pixel_values": torch.randn((1, 3, 64, 64), generator=generator)})
    ids = torch.randint(4, VOCABULARY, (1, size.tokens), generator=generator)
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name in ("t5", "bart"):
        call["decoder_input_ids"] = torch.randint(4, VOCABULARY, (1, size.tokens), generator=generator)
    return Example((), call)


def trained_subject(reference: str, tokens: int, seed: int = 0) -> Subject:
    """A model as `--model` takes it, on texts of the built-in corpus as the command draws them, half by half."""
    from cohomcli.data.sample import load_texts
    from cohomcli.data.spec import DatasetSpec
    from cohomcli.models.load import load
    from cohomcli.models.resolve import resolve
    from cohomcli.models.spec import LoadOptions
    from cohomcli.precision.inputs import TextOptions, text_inputs

    loaded: Any = load(resolve(reference), LoadOptions())
    loaded.model.set_attn_implementation("eager")
    texts = load_texts(DatasetSpec(split="calibration"), 4 + SURVEYED, seed).texts
    chosen = [*texts[:4], *load_texts(DatasetSpec(split="heldout"), 4, seed).texts, *texts[4:]]
    calls = text_inputs(loaded.model, loaded.tokenizer, chosen, TextOptions(length=tokens))
    return Subject(loaded.info.name, loaded.model, calls[:4], calls[4:8], surveyed=calls[8:])
