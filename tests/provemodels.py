"""Small models for tests of proofs: one per family of operations, with an example call each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

IDS = torch.tensor([[1, 5, 7, 2]])
MASK = torch.ones(1, 4, dtype=torch.long)
DECODER = {"input_ids": IDS, "attention_mask": MASK, "use_cache": False}
ENCODER = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 0]])}
SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "vocab_size": 32,
    "max_position_embeddings": 16,
}
GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 16}


class ExpExp(nn.Module):
    """exp(exp(x)): the source system's example of a function that no format can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(torch.exp(x))


def _causal(config: Any) -> nn.Module:
    return hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def _mlp() -> nn.Module:
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.Tanh(), nn.LayerNorm(8)]
    layers += [nn.SiLU(), nn.Sigmoid(), nn.Softmax(-1), nn.Softplus(), nn.ELU(), nn.LeakyReLU(), nn.Hardtanh()]
    return nn.Sequential(*layers, nn.Hardswish(), nn.Mish(), nn.GELU("tanh"), nn.LogSoftmax(-1))


def _cnn() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    layers += [nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False), nn.GroupNorm(2, 4), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mlp": (_mlp, (torch.linspace(-2, 2, 8).reshape(2, 4),)),
    "cnn": (_cnn, (torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16),)),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (torch.randn(1, 3, 16),)),
    "gpt2": (lambda: _causal(hf.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0)), DECODER),
    "llama": (lambda: _causal(hf.LlamaConfig(num_key_value_heads=1, **SIZES)), DECODER),
    "bert": (
        lambda: hf.AutoModelForMaskedLM.from_config(hf.BertConfig(**SIZES), attn_implementation="eager"),
        ENCODER,
    ),
    "vit": (
        lambda: hf.AutoModelForImageClassification.from_config(
            hf.ViTConfig(**{k: v for k, v in SIZES.items() if "vocab" not in k and "max" not in k}, image_size=8,
                         patch_size=4), attn_implementation="eager"
        ),
        (torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8),),
    ),
    "resnet": (
        lambda: hf.AutoModelForImageClassification.from_config(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        ),
        (torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16),),
    ),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, Any]:
    """The model called `name` with seeded weights, in evaluation, and its example call."""
    torch.manual_seed(0)
    build, example = MODELS[name]
    return build().eval(), example
