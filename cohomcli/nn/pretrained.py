"""What the architectures of this package share as models of transformers."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from cohomcli.nn.block import initialise


class CohomPreTrained(PreTrainedModel):  # type: ignore[misc]
    """Loading, saving, initial weights, and what a forward pass reads off the configuration."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialise(module, self.config.initializer_range)

    @property
    def eager(self) -> bool:
        """Whether attention is to be computed op by op, as `attn_implementation="eager"` asks."""
        return bool(self.config._attn_implementation == "eager")

    def wanted_states(self, seen: list[Tensor], asked: bool | None) -> tuple[Tensor, ...] | None:
        """The hidden states `seen`, if the caller `asked` for them or left it to a configuration that does."""
        wanted = self.config.output_hidden_states if asked is None else asked
        return tuple(seen) if wanted else None
