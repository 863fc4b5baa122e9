"""The configuration of the cohomological transformer, readable without torch code of the model."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from cohomcli.errors import UsageError


class CohomologicalConfig(PretrainedConfig):  # type: ignore[misc]
    """Settings of `CohomologicalTransformer`: three levels H0, H1, H2 of blocks, each with its heads and its window.

    `dim` (also `hidden_size`) is the width, `sequence_dim` that of the sequence component passed between levels. A
    window is a number of tokens to either side, None the whole text; windows grow from level to level, from local to
    global. `causal` makes a left-to-right language model, otherwise a masked one. `exact` "hard" makes the maps between
    levels compose to zero by construction, "soft" leaves that to the exact-sequence loss.
    """

    model_type = "cohomological_transformer"
    attribute_map = {"dim": "hidden_size", "num_attention_heads": "h0_heads"}  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 30000,
        dim: int = 512,
        sequence_dim: int = 64,
        num_h0_layers: int = 4,
        num_h1_layers: int = 2,
        num_h2_layers: int = 1,
        h0_heads: int = 8,
        h1_heads: int = 4,
        h2_heads: int = 2,
        *,
        h0_window: int | None = 16,
        h1_window: int | None = 64,
        h2_window: int | None = None,
        causal: bool = True,
        exact: str = "hard",
        intermediate_size: int | None = None,
        max_position_embeddings: int = 1024,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.sequence_dim = vocab_size, sequence_dim
        self.hidden_size = kwargs.pop("hidden_size", dim)
        self.num_h0_layers, self.num_h1_layers, self.num_h2_layers = num_h0_layers, num_h1_layers, num_h2_layers
        self.h0_heads = kwargs.pop("num_attention_heads", h0_heads)
        self.h1_heads, self.h2_heads = h1_heads, h2_heads
        self.h0_window, self.h1_window, self.h2_window = h0_window, h1_window, h2_window
        self.causal, self.exact = causal, exact
        self.intermediate_size = 4 * self.hidden_size if intermediate_size is None else intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.dropout, self.initializer_range = dropout, initializer_range
        kwargs.pop("num_hidden_layers", None)
        kwargs.pop("is_decoder", None)
        self.num_hidden_layers = num_h0_layers + num_h1_layers + num_h2_layers
        self._check()
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.is_decoder = causal

    def levels(self) -> tuple[tuple[int, int, int | None], ...]:
        """(number of blocks, heads, window) of H0, H1 and H2."""
        return (
            (self.num_h0_layers, self.h0_heads, self.h0_window),
            (self.num_h1_layers, self.h1_heads, self.h1_window),
            (self.num_h2_layers, self.h2_heads, self.h2_window),
        )

    def _check(self) -> None:
        if self.exact not in ("hard", "soft"):
            raise UsageError(f"exact {self.exact!r} is unknown", "use hard or soft")
        if not isinstance(self.sequence_dim, int) or not 0 < self.sequence_dim < self.hidden_size:
            raise UsageError(
                f"sequence_dim {self.sequence_dim!r} is not below the width {self.hidden_size}", "lower it"
            )
        for level, (n_layer, heads, window) in enumerate(self.levels()):
            if n_layer < 1 or heads < 1 or self.hidden_size % heads or (window is not None and window < 1):
                raise UsageError(
                    f"level H{level} with {n_layer} blocks, {heads} heads and window {window} is impossible",
                    f"at least one block, heads that divide {self.hidden_size}, a positive window or none",
                )
