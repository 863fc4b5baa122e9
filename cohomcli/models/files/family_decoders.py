"""Decoder families told by their state dicts: GPT-2 (and nanoGPT), GPT-NeoX, OPT, Llama, Mistral and Qwen2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cohomcli.models.files.heads import Inference, infer_heads, rotary_base
from cohomcli.models.files.shapes import Backbone

# Published heads by width; (width, layers) where one width was published with different heads.
_GPT2_HEADS = {768: 12, 1024: 16, 1280: 20, 1600: 25}
_OPT_HEADS = {768: 12, 1024: 16, 2048: 32, 2560: 32, 4096: 32, 5120: 40, 7168: 56, 9216: 72}
_NEOX_HEADS = {
    (128, 6): 4, (512, 6): 8, (768, 12): 12, (1024, 24): 16, (2048, 16): 8, (2048, 24): 16, (2560, 32): 32,
    (4096, 32): 32, (5120, 36): 40, (6144, 44): 64,
}  # fmt: skip
_LLAMA3_SCALING = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
# (width, layers, vocabulary, MLP width) of published models whose shapes no other published model with another rotary
# base shares. SmolLM against SmolLM2, Llama 1 against 2, Qwen2.5 against its Math sister do share: they are not here.
_KNOWN_LLAMAS: dict[tuple[int, int, int, int], tuple[str, dict[str, Any]]] = {
    (2048, 22, 32000, 5632): ("TinyLlama-1.1B", {"num_attention_heads": 32, "rope_theta": 1e4, "rms_norm_eps": 1e-5}),
    (896, 24, 151936, 4864): ("Qwen2.5-0.5B", {"num_attention_heads": 14, "rope_theta": 1e6, "rms_norm_eps": 1e-6}),
    (2048, 36, 151936, 11008): ("Qwen2.5-3B", {"num_attention_heads": 16, "rope_theta": 1e6, "rms_norm_eps": 1e-6}),
    (2048, 16, 128256, 8192): (
        "Llama-3.2-1B",
        {"num_attention_heads": 32, "rope_parameters": _LLAMA3_SCALING, "rms_norm_eps": 1e-5},
    ),
    (3072, 28, 128256, 8192): (
        "Llama-3.2-3B",
        {"num_attention_heads": 24, "rope_parameters": _LLAMA3_SCALING, "rms_norm_eps": 1e-5},
    ),
}


def gpt2(stack: Backbone, facts: dict[str, Any]) -> tuple[Inference, dict[str, Tensor]]:
    """GPT-2 as OpenAI and Hugging Face store it (weights as inputs x outputs), and nanoGPT (outputs x inputs)."""
    width = stack.size("wte.weight", 1)
    linear = stack.shape("h.0.attn.c_attn.weight") == (3 * width, width)
    found = Inference(
        {
            "model_type": "gpt2",
            "n_layer": stack.n_layer("h"),
            "n_embd": width,
            "n_positions": stack.size("wpe.weight", 0),
            "vocab_size": stack.size("wte.weight", 0),
            "n_inner": stack.size("h.0.mlp.c_fc.weight", 0 if linear else 1),
            "architectures": ["GPT2LMHeadModel"],
            "bos_token_id": None,
            "eos_token_id": None,
        }
    )
    tensors = stack.renamed("transformer.")
    arguments = facts.get("model_args")
    given = arguments.get("n_head") if isinstance(arguments, dict) else None
    if isinstance(given, int) and given > 0:
        found.config["n_head"] = given
    else:
        infer_heads(found, "n_head", width, _GPT2_HEADS)
    if linear:
        tensors = _as_conv1d(tensors)
        tensors.update(_zero_biases(found, tensors))
        found.config["activation_function"] = "gelu"
        found.assume("exact GELU and a norm epsilon of 1e-5, as nanoGPT has them")
    else:
        found.assume("tanh GELU and a norm epsilon of 1e-5, as GPT-2 has them")
    _tie(found, tensors, "lm_head.weight", "transformer.wte.weight")
    return found, tensors


def _as_conv1d(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """NanoGPT's linear layers transposed into GPT-2's `Conv1D`."""
    layers = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")
    return {name: value.t().contiguous() if name.endswith(layers) else value for name, value in tensors.items()}


def _zero_biases(found: Inference, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The biases a model without biases lacks; adding zero changes nothing."""
    added: dict[str, Tensor] = {}
    for name, value in tensors.items():
        bias = f"{name.removesuffix('.weight')}.bias"
        inside = name.startswith("transformer.") and name.endswith(".weight") and ".wte." not in name
        if inside and ".wpe." not in name and bias not in tensors:
            added[bias] = torch.zeros(value.shape[-1], dtype=value.dtype)
    if added:
        found.assume(f"{len(added)} biases are not stored and are zero")
    return added


def gpt_neox(stack: Backbone, _: dict[str, Any]) -> tuple[Inference, dict[str, Tensor]]:
    """GPT-NeoX and Pythia."""
    width, n_layer = stack.size("embed_in.weight", 1), stack.n_layer("layers")
    found = Inference(
        {
            "model_type": "gpt_neox",
            "hidden_size": width,
            "num_hidden_layers": n_layer,
            "vocab_size": stack.size("embed_in.weight", 0),
            "intermediate_size": stack.size("layers.0.mlp.dense_h_to_4h.weight", 0),
            "attention_bias": "layers.0.attention.dense.bias" in stack.tensors,
            "bos_token_id": None,
            "eos_token_id": None,
        }
    )
    if (width, n_layer) in _NEOX_HEADS:
        found.config["num_attention_heads"] = _NEOX_HEADS[width, n_layer]
        found.assume(
            f"{found.config['num_attention_heads']} attention heads, a quarter of each rotated with base 10,000, "
            f"parallel residual: as in the published models of width {width} and {n_layer} layers"
        )
    else:
        found.lacking.append(f"the number of attention heads for width {width}")
    tensors = _with_head(stack, "gpt_neox.", found, "GPTNeoXForCausalLM", "GPTNeoXModel")
    tensors = {name.replace("embed_out.", "lm_head."): value for name, value in tensors.items()}
    _tie(found, tensors, "lm_head.weight", "gpt_neox.embed_in.weight")
    return found, tensors


def opt(stack: Backbone, _: dict[str, Any]) -> tuple[Inference, dict[str, Tensor]]:
    """OPT; two rows of its position table are an offset, not positions."""
    width = stack.size("decoder.embed_positions.weight", 1)
    post_norm = "decoder.final_layer_norm.weight" not in stack.tensors
    found = Inference(
        {
            "model_type": "opt",
            "hidden_size": width,
            "num_hidden_layers": stack.n_layer("decoder.layers"),
            "vocab_size": stack.size("decoder.embed_tokens.weight", 0),
            "word_embed_proj_dim": stack.size("decoder.embed_tokens.weight", 1),
            "ffn_dim": stack.size("decoder.layers.0.fc1.weight", 0),
            "max_position_embeddings": stack.size("decoder.embed_positions.weight", 0) - 2,
            "do_layer_norm_before": not post_norm,
            "enable_bias": "decoder.layers.0.fc1.bias" in stack.tensors,
            "architectures": ["OPTForCausalLM"],
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }
    )
    found.foreign = any(name.startswith("encoder.") for name in stack.tensors)  # BART
    infer_heads(found, "num_attention_heads", width, _OPT_HEADS)
    found.assume("ReLU, as OPT has it")
    tensors = stack.renamed("model.")
    _tie(found, tensors, "lm_head.weight", "model.decoder.embed_tokens.weight")
    return found, tensors


def llama(stack: Backbone, _: dict[str, Any]) -> tuple[Inference, dict[str, Tensor]]:
    """Llama, Mistral and Qwen2: the rotary base is not in the weights, so most sizes need their configuration."""
    width, n_layer = stack.size("embed_tokens.weight", 1), stack.n_layer("layers")
    vocabulary, inner = stack.size("embed_tokens.weight", 0), stack.size("layers.0.mlp.gate_proj.weight", 0)
    biased = "layers.0.self_attn.q_proj.bias" in stack.tensors
    qwen = biased and "layers.0.self_attn.o_proj.bias" not in stack.tensors
    found = Inference(
        {
            "model_type": "qwen2" if qwen else "llama",
            "hidden_size": width,
            "num_hidden_layers": n_layer,
            "vocab_size": vocabulary,
            "intermediate_size": inner,
            "bos_token_id": None,
            "eos_token_id": None,
        }
    )
    if not qwen:
        found.config |= {"attention_bias": biased, "mlp_bias": "layers.0.mlp.gate_proj.bias" in stack.tensors}
    others = (".q_norm.", ".post_feedforward_layernorm.", ".pre_feedforward_layernorm.", ".experts.")
    found.foreign = any(part in name for name in stack.tensors for part in others)  # Qwen3, Gemma, mixtures of experts
    _llama_attention(found, stack, (width, n_layer, vocabulary, inner))
    tensors = _with_head(stack, "model.", found, *(_QWEN if qwen else _LLAMA))
    _tie(found, tensors, "lm_head.weight", "model.embed_tokens.weight")
    return found, tensors


_LLAMA = ("LlamaForCausalLM", "LlamaModel")
_QWEN = ("Qwen2ForCausalLM", "Qwen2Model")


def _llama_attention(found: Inference, stack: Backbone, size: tuple[int, int, int, int]) -> None:
    """Heads and rotary base: from a stored rotary table, else from a published model of exactly these shapes."""
    queries = stack.size("layers.0.self_attn.q_proj.weight", 0)
    keys = stack.size("layers.0.self_attn.k_proj.weight", 0)
    table = next((value for name, value in stack.computed.items() if name.endswith("rotary_emb.inv_freq")), None)
    if table is not None and table.numel():
        head = 2 * table.numel()
        base = rotary_base(table, head)
        if base is not None and queries % head == 0 and keys % head == 0:
            found.config |= {"num_attention_heads": queries // head, "head_dim": head, "rope_theta": base}
            found.config["num_key_value_heads"] = keys // head
            found.assume("a norm epsilon of 1e-6 and full attention; heads and rotary base are from the stored table")
            found.config["rms_norm_eps"] = 1e-6
            return
    if size in _KNOWN_LLAMAS:
        name, published = _KNOWN_LLAMAS[size]
        head = queries // published["num_attention_heads"]
        found.config |= {**published, "head_dim": head, "num_key_value_heads": keys // head}
        found.assume(f"heads, rotary base and norm epsilon of {name}, which has exactly these shapes")
        return
    found.lacking += [f"the number of attention heads for width {size[0]}", "the rotary base"]


def _with_head(stack: Backbone, prefix: str, found: Inference, causal: str, bare: str) -> dict[str, Tensor]:
    """Choose the class: with its language-modelling head when one was stored or its wrapper's name was."""
    has_head = stack.wrapped or bool(stack.heads)
    found.config["architectures"] = [causal if has_head else bare]
    return stack.renamed(prefix)


def _tie(found: Inference, tensors: dict[str, Tensor], head: str, embedding: str) -> None:
    """Whether the output head is the token embedding: it is when it is not stored, or stored with equal values."""
    stored, table = tensors.get(head), tensors.get(embedding)
    tied = stored is None or (table is not None and stored.shape == table.shape and torch.equal(stored, table))
    found.config["tie_word_embeddings"] = tied
    if stored is None and str(found.config["architectures"][0]).endswith(("ForCausalLM", "LMHeadModel")):
        found.assume("the output head is the token embedding, for no head is stored")
