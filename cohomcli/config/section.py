"""What every section of the configuration is: validated, frozen, and deaf to keys that it does not know."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of the sections."""

    model_config = ConfigDict(extra="forbid", frozen=True)
