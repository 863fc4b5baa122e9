"""The section on pruning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cohomcli.config.section import Section


class PruningConfig(Section):
    """What `cohom prune` removes, and how."""

    method: str = Field(
        "chain", description="chain, admm, sparsegpt, wanda, flap, influence, magnitude, random; svdllm, asvd, svd"
    )
    protect: str | None = Field(None, description="circuit.json or run of cohom circuits, whose weights stay")
    pattern: str = Field(
        "0.5",
        description="0.5 of every row, layer:0.5, 2:4, mlp:0.25, heads:0.25, experts:0.25, blocks:0.25, rank:0.25",
    )
    shrink: Literal["auto"] | float = Field(
        "auto", description="lambda: how little the Gram's correlations are trusted"
    )
    calibration: str | None = Field(None, description="data set to calibrate on; else the first of datasets")
    calibration_tokens: int = Field(8192, ge=2, description="tokens of calibration text")
    evaluate: list[str] = Field([], description="further data sets to measure on, out of domain")
    evaluation_tokens: int = Field(8192, ge=2, description="tokens of every evaluation")
    block_size: int = Field(128, ge=2, description="tokens per sequence")
    verify: bool = Field(False, description="load the result in a fresh process and compare logits")
    allocation: Literal["uniform", "owl"] = Field("uniform", description="how much of every block goes")
    rounds: int = Field(1, ge=1, le=1000, description="passes in which ever more weights go")
    recover: int = Field(0, ge=0, description="updates of fine-tuning after every pass; 0: none")
    recover_lr: float = Field(1e-4, gt=0, description="peak learning rate of the fine-tuning")
    sweep: list[float] = Field([], description="further sparsities to measure; their models are not kept")
    exactness: bool = Field(True, description="measure what is written and read between blocks, before and after")
    stream: Literal["auto", "always", "never"] = Field("auto", description="keep only one block of the model in memory")
    topology: bool = Field(False, description="persistence of every layer, dense against pruned")
