"""The section on pruning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cohomcli.config.section import Section


class PruningConfig(Section):
    """What `cohom prune` removes, and how."""

    method: str = Field("chain", description="chain, admm, sparsegpt, wanda, flap, influence, magnitude or random")
    protect: str | None = Field(None, description="circuit.json or run of cohom circuits, whose weights stay")
    pattern: str = Field("0.5", description="0.5 of every row, layer:0.5, 2:4, mlp:0.25, heads:0.25 or blocks:0.25")
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
    sweep: list[float] = Field([], description="further sparsities to measure; their models are not kept")
    exactness: bool = Field(True, description="measure what is written and read between blocks, before and after")
