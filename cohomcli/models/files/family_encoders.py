"""Encoder families told by their state dicts: BERT, RoBERTa, DistilBERT and ViT."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cohomcli.models.files.heads import Inference, infer_heads
from cohomcli.models.files.shapes import Backbone

_BERT_HEADS = {128: 2, 256: 4, 312: 12, 384: 12, 512: 8, 768: 12, 1024: 16}
_ROBERTA_HEADS = {384: 12, 768: 12, 1024: 16}
_DISTILBERT_HEADS = {768: 12}
_VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_ROBERTA_OFFSET = 2  # its position table starts behind the padding id 1


def bert(stack: Backbone, _: dict[str, Any]) -> tuple[Inference, dict[str, Tensor]]:
    """BERT and RoBERTa, which share every name of the stack; heads, or the position table, tell them apart."""
    roberta = _is_roberta(stack)
    width = stack.size("embeddings.word_embeddings.weight", 1)
    positions = stack.size("embeddings.position_embeddings.weight", 0)
    found = Inference(
        {
            "model_type": "roberta" if roberta else "bert",
            "hidden_size": width,
            "num_hidden_layers": stack.n_layer("encoder.layer"),
            "vocab_size": stack.size("embeddings.word_embeddings.weight", 0),
            "max_position_embeddings": positions,
            "type_vocab_size": stack.size("embeddings.token_type_embeddings.weight", 0),
            "intermediate_size": stack.size("encoder.layer.0.intermediate.dense.weight", 0),
            "layer_norm_eps": 1e-5 if roberta else 1e-12,
            "pad_token_id": 1 if roberta else 0,
        }
    )
    inside = stack.size("encoder.layer.0.attention.self.query.weight", 1)
    found.foreign = "embeddings_project.weight" in stack.tensors or inside != width  # ELECTRA, MPNet
    infer_heads(found, "num_attention_heads", width, _ROBERTA_HEADS if roberta else _BERT_HEADS)
    found.assume(f"GELU and a norm epsilon of {found.config['layer_norm_eps']:g}, as {found.config['model_type']} has")
    name = "Roberta" if roberta else "Bert"
    masked = "lm_head.dense.weight" if roberta else "cls.predictions.transform.dense.weight"
    tensors = stack.renamed(f"{name.lower()}.")
    _choose_class(found, stack, f"{name}ForMaskedLM", masked, f"{name}Model")
    return found, tensors


def _is_roberta(stack: Backbone) -> bool:
    if "lm_head.dense.weight" in stack.heads:
        return True
    positions = stack.size("embeddings.position_embeddings.weight", 0)
    types = stack.size("embeddings.token_type_embeddings.weight", 0)
    return types == 1 and (positions - _ROBERTA_OFFSET) % 64 == 0


def distilbert(stack: Backbone, _: dict[str, Any]) -> tuple[Inference, dict[str, Tensor]]:
    """DistilBERT."""
    width = stack.size("embeddings.word_embeddings.weight", 1)
    found = Inference(
        {
            "model_type": "distilbert",
            "dim": width,
            "n_layers": stack.n_layer("transformer.layer"),
            "vocab_size": stack.size("embeddings.word_embeddings.weight", 0),
            "max_position_embeddings": stack.size("embeddings.position_embeddings.weight", 0),
            "hidden_dim": stack.size("transformer.layer.0.ffn.lin1.weight", 0),
        }
    )
    infer_heads(found, "n_heads", width, _DISTILBERT_HEADS)
    found.assume("GELU, as DistilBERT has it")
    _choose_class(found, stack, "DistilBertForMaskedLM", "vocab_transform.weight", "DistilBertModel")
    return found, stack.renamed("distilbert.")


def vit(stack: Backbone, _: dict[str, Any]) -> tuple[Inference, dict[str, Tensor]]:
    """ViT as Hugging Face names it, before and since transformers 5."""
    width, patch = (stack.size("embeddings.patch_embeddings.projection.weight", axis) for axis in (0, 2))
    patches = stack.size("embeddings.position_embeddings", 1) - 1
    side = round(max(patches, 0) ** 0.5)
    old = stack.n_layer("encoder.layer")
    inner = stack.size("encoder.layer.0.intermediate.dense.weight" if old else "layers.0.mlp.fc1.weight", 0)
    found = Inference(
        {
            "model_type": "vit",
            "hidden_size": width,
            "num_hidden_layers": old or stack.n_layer("layers"),
            "intermediate_size": inner,
            "patch_size": patch,
            "image_size": side * patch,
            "num_channels": stack.size("embeddings.patch_embeddings.projection.weight", 1),
        }
    )
    if side * side != patches:
        found.lacking.append("the image size (its positions are no square)")
    infer_heads(found, "num_attention_heads", width, _VIT_HEADS)
    found.assume("GELU and a norm epsilon of 1e-12, as ViT has them")
    _choose_class(found, stack, "ViTForImageClassification", "classifier.weight", "ViTModel")
    return found, stack.renamed("vit.")


def _choose_class(found: Inference, stack: Backbone, headed: str, head: str, bare: str) -> None:
    """The class whose head is stored; a classifier's labels are counted from its weights.

    A classifier of whole texts sits on a pooled vector (BERT's pooler, RoBERTa's `classifier.dense`, DistilBERT's
    `pre_classifier`), one of tokens sits on the stack itself.
    """
    classifier = stack.heads.get("classifier.weight", stack.heads.get("classifier.out_proj.weight"))
    pooled = {"pooler.dense.weight", "classifier.dense.weight", "pre_classifier.weight"} & {
        *stack.tensors,
        *stack.heads,
    }
    name = bare
    if head in stack.heads:
        name = headed
    elif "qa_outputs.weight" in stack.heads:
        name = bare.replace("Model", "ForQuestionAnswering")
    elif classifier is not None:
        name = bare.replace("Model", "ForSequenceClassification" if pooled else "ForTokenClassification")
    found.config["architectures"] = [name]
    if classifier is not None:
        found.config["num_labels"] = int(classifier.shape[0])
