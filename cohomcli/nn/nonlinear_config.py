"""The configuration of the two-dimensional transformer, readable without torch code of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from transformers import PretrainedConfig

from cohomcli.errors import UsageError

LayerKind = Literal["local", "global", "chunk"]
_MAX_CALLS = 1000  # a configuration that claims more is no model, and building it would take hours


class NonLinearConfig(PretrainedConfig):  # type: ignore[misc]
    """Settings of `NonLinearTransformer`.

    `dim` (also `embed_size`, `hidden_size`) is the width, `depth` the number of distinct blocks, each called
    `iterations` times in turn, `window_size` the radius of local attention in cells. Every `global_every`-th block is
    global, or sees chunks of `chunk` x `chunk` cells when that is set; 0 makes all blocks local. `height` and `width`
    are the largest grid (`matrix_dim` sets both); texts are written into rows of `width` cells.

    A model that fills in grids also knows the token `mask_token_id` of a hidden cell, the `symbols` that stand for the
    other tokens in text, one character each, whether these are levels of grey, and `class_names` where its grids come
    in classes.
    """

    model_type = "nonlinear_transformer"
    attribute_map = {"dim": "hidden_size", "embed_size": "hidden_size", "heads": "num_attention_heads"}  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 256,
        dim: int = 128,
        depth: int = 6,
        heads: int = 8,
        window_size: int = 3,
        *,
        iterations: int = 1,
        global_every: int = 3,
        chunk: int | None = None,
        height: int = 32,
        width: int = 32,
        matrix_dim: int | None = None,
        intermediate_size: int | None = None,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        tie_word_embeddings: bool = False,
        mask_token_id: int | None = None,
        symbols: str = "",
        class_names: Sequence[str] = (),
        palette: Literal["grey", "colours"] = "grey",
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.depth, self.iterations = vocab_size, depth, iterations
        self.hidden_size = kwargs.pop("embed_size", kwargs.pop("hidden_size", dim))
        self.num_attention_heads = kwargs.pop("num_attention_heads", heads)
        self.window_size, self.global_every, self.chunk = window_size, global_every, chunk
        self.height, self.width = (height, width) if matrix_dim is None else (matrix_dim, matrix_dim)
        self.intermediate_size = 4 * self.hidden_size if intermediate_size is None else intermediate_size
        self.dropout, self.initializer_range = dropout, initializer_range
        self.mask_token_id, self.symbols, self.class_names = mask_token_id, symbols, list(class_names)
        self.palette = palette  # how pictures show the tokens
        kwargs.pop("num_hidden_layers", None)
        kwargs.pop("max_position_embeddings", None)
        self.num_hidden_layers = depth * iterations
        self.max_position_embeddings = self.height * self.width
        self._check()
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    @property
    def n_classes(self) -> int:
        """How many classes its grids come in; 0: none."""
        return len(self.class_names)

    def layer_kinds(self) -> list[LayerKind]:
        """What each of the `depth` blocks attends to."""
        wide: LayerKind = "global" if self.chunk is None else "chunk"
        return [wide if self.global_every and (i + 1) % self.global_every == 0 else "local" for i in range(self.depth)]

    def _check(self) -> None:
        whole = {
            "vocab_size": self.vocab_size, "dim": self.hidden_size, "depth": self.depth, "iterations": self.iterations,
            "height": self.height, "width": self.width, "heads": self.num_attention_heads,
        }  # fmt: skip
        for name, value in whole.items():
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} {value!r} is no positive whole number", "correct the configuration")
        if self.num_hidden_layers > _MAX_CALLS:
            raise UsageError(f"{self.num_hidden_layers} block calls are no model", "lower depth or iterations")
        if self.window_size < 0 or self.global_every < 0:
            raise UsageError("window_size and global_every cannot be negative", "correct the configuration")
        hidden = self.mask_token_id
        if hidden is not None and (not isinstance(hidden, int) or not 0 <= hidden < self.vocab_size):
            raise UsageError(f"mask_token_id {hidden!r} is no token of {self.vocab_size}", "correct the configuration")
        if hidden is not None and self.symbols and len(self.symbols) != hidden:
            raise UsageError(f"{len(self.symbols)} symbols do not stand for {hidden} tokens", "give one for each")
