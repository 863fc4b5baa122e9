"""The section of the configuration on ablations; see docs/ablations.md."""

from typing import Any, Literal

from pydantic import Field

from cohomcli.config.section import Section


class AblationConfig(Section):
    """What `cohom train --ablate` compares; steps, batches and learning rate are those of `training`."""

    enabled: bool = Field(False, description="compare arms instead of training one model")
    task: Literal["text", "scan", "listops", "modular", "digits"] = Field(
        "text", description="text: the data set; or a generated task: scan, listops, modular, digits"
    )
    options: dict[str, Any] = Field({}, description="of the generated task, e.g. {split: length, cutoff: 9}")
    arms: list[str] = Field(
        ["none", "ours", "literal", "placebo", "vicreg", "orthogonal", "compute"],
        description="none and what is compared with it; also exact and spectral, our losses apart",
    )
    weights: list[float] = Field(
        [0.03, 0.1, 0.3], description="tried for every arm, as shares of the task's gradient at the start"
    )
    tune_seeds: int = Field(2, ge=1, description="seeds of the runs that choose a weight")
    tune_steps: int = Field(0, ge=0, description="steps of those runs; 0: max_steps")
    seeds: int = Field(5, ge=2, description="seeds of the final comparison; fewer than five are never evidence")
    metric: Literal["auto", "loss", "accuracy"] = Field("auto", description="auto: loss for text, else accuracy")
    compute_ratio: float | None = Field(None, ge=1, description="cost of a step of ours; none measures it at the start")
    level: float = Field(0.95, gt=0.5, lt=1, description="confidence of all comparisons together")
