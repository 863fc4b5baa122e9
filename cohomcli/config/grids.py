"""The sections of the configuration on grids: what is trained on, and what `cohom generate` makes."""

from pydantic import Field

from cohomcli.config.section import Section


class GridConfig(Section):
    """What grids `cohom train --objective grid` reads from the data set."""

    levels: int = Field(4, ge=2, le=62, description="levels of grey of digits and images")
    size: str | None = Field(None, description="HxW that images are resized to, or that smaller grids lie in")
    class_dropout: float = Field(0.1, ge=0, le=1, description="share of grids that are shown without their class")


class GenerationConfig(Section):
    """What `cohom generate` makes with a model of grids."""

    steps: int = Field(8, ge=1, description="passes; each fills the cells the model is surest of")
    count: int = Field(10, ge=1, description="grids of every class asked for, or completions of every grid")
    labels: list[str] = Field([], description="classes to generate, or all; none: the model's own mixture")
    complete: str | None = Field(None, description="file with grids to complete; ? is a cell to fill")
    size: str | None = Field(None, description="HxW of new grids; none: the largest of the model")
    temperature: float = Field(1.0, ge=0, description="0 takes the likeliest value of every cell")
    guidance: float = Field(0.0, ge=0, description="how far beyond the class-conditional logits; 0: none")
    noise: float = Field(1.0, ge=0, description="scale of noise on which cells come first")
    animate: bool = Field(False, description="also write steps.gif")
