"""The section on training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cohomcli.config.section import Section


class TrainingConfig(Section):
    """How `cohom train` trains; a step is one update of the weights."""

    architecture: dict[str, Any] | None = Field(
        None, description="a new model instead of --model: model_type and its configuration, e.g. {model_type: gpt2}"
    )
    texts: int = Field(0, ge=0, description="texts to train on; 0: all of the data set")
    eval_split: str | None = Field(None, description="split to evaluate on; else texts kept apart by their hash")
    eval_fraction: float = Field(0.0625, gt=0, lt=1, description="share of texts kept apart where there is no split")
    eval_texts: int = Field(256, ge=1, description="texts of the evaluation at most")
    objective: Literal["auto", "causal", "masked", "grid"] = Field(
        "auto", description="auto: what the model's head is for; grid: fill in grids of cells"
    )
    exact_weight: float = Field(0.0, ge=0, description="weight of the exact-sequence loss; 0 is exactly off")
    spectral_weight: float = Field(0.0, ge=0, description="weight of the spectral-sequence loss; 0 is exactly off")
    max_steps: int = Field(1000, ge=1, description="updates of the weights")
    epochs: float | None = Field(None, gt=0, description="passes over the data, instead of max_steps")
    batch_size: int = Field(8, ge=1, description="sequences per process and micro-batch")
    accumulation: int = Field(1, ge=1, description="micro-batches per update")
    block_size: int = Field(128, ge=2, description="tokens per sequence")
    mask_rate: float = Field(0.15, gt=0, lt=1, description="share of tokens a masked model is asked for")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.1, ge=0, description="decay of matrices; biases and norms do not decay")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0: never")
    schedule: Literal["cosine", "linear", "wsd", "constant", "spectral"] = Field(
        "cosine", description="after the warm-up; spectral: constant, upper blocks wait for lower ones to agree"
    )
    optimizer: Literal["adamw", "exact"] = Field(
        "adamw", description="exact: AdamW that does not shrink what the next block reads"
    )
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up")
    min_lr_ratio: float = Field(0.05, ge=0, le=1, description="last learning rate over the peak")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="autocast of accelerate")
    gradient_checkpointing: bool = Field(False, description="recompute activations instead of keeping them")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights, which are then kept; 0: off")
    log_every: int = Field(10, ge=1, description="steps between lines of the log")
    eval_every: int = Field(100, ge=1, description="steps between evaluations")
    save_every: int = Field(100, ge=0, description="steps between checkpoints; 0: only the last")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    patience: int = Field(0, ge=0, description="evaluations without a better loss that end the run; 0: never")
    max_time: float | None = Field(None, gt=0, description="seconds after which the run ends with a checkpoint")
    mask: str | None = Field(None, description="masks.safetensors, or its folder: weights that are zero and stay zero")
    track_topology: int = Field(0, ge=0, description="steps between measures of the layers' topology; 0: never")
    samples: int = Field(3, ge=0, description="texts a causal model goes on with at the end")
    tensorboard: bool = Field(False, description="also write TensorBoard events (needs the tensorboard package)")
