"""The section of the configuration that `cohom circuits` reads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cohomcli.config.section import Section


class CircuitsConfig(Section):
    """What `cohom circuits` looks for, and how."""

    task: str = Field("ioi", description="ioi, greater-than, induction, or a JSON lines file of pairs")
    pairs: int = Field(64, ge=2, description="pairs of prompts of a shipped task")
    level: Literal["heads", "neurons", "edges"] = Field(
        "heads", description="heads (and whole MLPs), neurons (and heads), or edges between them"
    )
    method: str = Field("integrated", description="integrated, attribution or exact (one pass per component)")
    base: Literal["clean", "corrupt"] = Field("clean", description="prompts in whose run components are exchanged")
    metric: Literal["auto", "logit", "probability"] = Field(
        "auto", description="difference of logits or probabilities; auto: as the task is published"
    )
    ablation: Literal["pair", "resample", "mean"] = Field(
        "pair", description="what replaces the rest: the pair's corrupt run, another pair's, or the mean of all"
    )
    steps: int = Field(5, ge=1, description="gradients that method integrated averages")
    tolerance: float = Field(0.1, gt=0, lt=1, description="how far from 1 the faithfulness of a circuit may be")
    draws: int = Field(3, ge=1, description="corruptions drawn per pair with ablation resample")
    check: int = Field(40, ge=0, description="components that are also patched exactly; 0: none")
    minimise: bool = Field(True, description="leave out components one by one as long as the tolerance is kept")
