"""A transformer over grids of tokens, all directions at once: `NonLinearTransformer`.

Rotary embedding of queries and keys is relative, so a canvas of equal tokens would look the same everywhere; learned
embeddings of rows and columns say where a cell is. Local layers cannot coordinate distant cells; every few layers one
sees the whole grid, or the means of its chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from cohomcli.errors import UsageError
from cohomcli.nn.block import Block, mark_residual_writers
from cohomcli.nn.grid import ChunkAttention, Global2DAttention, GridAttention, Local2DAttention, Size
from cohomcli.nn.losses import token_loss
from cohomcli.nn.nonlinear_config import LayerKind, NonLinearConfig
from cohomcli.nn.pretrained import CohomPreTrained


class NonLinearPreTrained(CohomPreTrained):
    """What the backbone and the model share."""

    config_class = NonLinearConfig


class NonLinearModel(NonLinearPreTrained):
    """The backbone: embeddings, blocks, final norm."""

    def __init__(self, config: NonLinearConfig) -> None:
        super().__init__(config)
        d = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, d)
        self.row_embeddings = nn.Embedding(config.height, d)
        self.column_embeddings = nn.Embedding(config.width, d)
        # the last one stands for an unknown class
        self.class_embeddings = nn.Embedding(config.n_classes + 1, d) if config.n_classes else None
        self.blocks = nn.ModuleList(
            Block(d, _attention(config, kind), config.intermediate_size, config.dropout)
            for kind in config.layer_kinds()
        )
        for block in self.blocks:
            mark_residual_writers(block, config.num_hidden_layers)
        self.final_norm = nn.LayerNorm(d)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        class_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Hidden states of a grid (B, H, W) or of texts (B, T), written into rows of `config.width` cells.

        `attention_mask` has the shape of `input_ids`, non-zero where a cell exists; `inputs_embeds` has one dimension
        more and replaces them. `class_ids` (B,) int64 name the grids' classes, `config.n_classes` an unknown one, which
        is the default. `last_hidden_state` is (B, H, W, d) or (B, T, d). Other keywords of the transformers interface
        mean nothing here.

        Raises:
            UsageError: the grid is larger than the configuration's, no input is given, or a class to a model of none.
        """
        cells = self.embed_tokens(input_ids) if inputs_embeds is None and input_ids is not None else inputs_embeds
        if cells is None or cells.dim() not in (3, 4):
            raise UsageError("no grid of tokens was given", "input_ids are (B, H, W), or (B, T) for texts")
        shape = cells.shape
        x, present, size = self._laid_out(cells, attention_mask)
        x = self._with_class(x, class_ids)
        seen = [x]
        for _ in range(self.config.iterations):
            for block in self.blocks:
                x = block(x, present, size=size, eager=self.eager)
                seen.append(x)
        x = self.final_norm(x)
        n = shape[1:-1].numel()
        states = self.wanted_states([h[:, :n].reshape(shape) for h in seen], output_hidden_states)
        return BaseModelOutput(last_hidden_state=x[:, :n].reshape(shape), hidden_states=states)

    def _laid_out(self, cells: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Size]:
        """Cells (B, H * W, d) with their positions added, the mask (B, H * W) or None, and (H, W)."""
        B, d = cells.shape[0], cells.shape[-1]
        n, limit = cells.shape[1:-1].numel(), self.config.width
        H, W = (cells.shape[1], cells.shape[2]) if cells.dim() == 4 else (-(-n // limit), min(n, limit))
        too_large = H > self.config.height or W > limit  # noqa: SIM300
        if too_large:
            raise UsageError(
                f"a grid of {H} x {W} cells does not fit a model for {self.config.height} x {limit}",
                "build the model with a larger height and width",
            )
        x, present = cells.reshape(B, n, d), None if mask is None else mask.reshape(B, n).to(torch.bool)
        fill = H * W - n
        if fill:  # the last line of a text is rarely full
            present = torch.ones(B, n, dtype=torch.bool, device=x.device) if present is None else present
            x, present = functional.pad(x, (0, 0, 0, fill)), functional.pad(present, (0, fill))
        places = self.row_embeddings.weight[:H, None] + self.column_embeddings.weight[None, :W]
        return x + places.reshape(1, H * W, d), present, (H, W)

    def _with_class(self, x: Tensor, class_ids: Tensor | None) -> Tensor:
        """Cells (B, N, d) with the embedding of their grid's class added."""
        if self.class_embeddings is None:
            if class_ids is not None:
                raise UsageError("this model was built without classes", "leave class_ids out, or give class_names")
            return x
        if class_ids is None:
            class_ids = torch.full((len(x),), self.config.n_classes, device=x.device)
        out: Tensor = x + self.class_embeddings(class_ids)[:, None]
        return out


class NonLinearTransformer(NonLinearPreTrained):
    """Token logits for every cell of a grid at once; trained by masking cells.

    Build it from a `NonLinearConfig`, or from that configuration's arguments by name:
    `NonLinearTransformer(vocab_size=100, embed_size=128, matrix_dim=10, heads=8, window_size=3, iterations=2)`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: NonLinearConfig | None = None, **settings: Any) -> None:
        super().__init__(NonLinearConfig(**settings) if config is None else config)
        self.model = NonLinearModel(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        class_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """`logits` (B, H, W, vocabulary) or (B, T, vocabulary), and `loss` when `labels` are given.

        `labels` have the shape of `input_ids`, -100 where nothing is to be predicted. The rest as in `NonLinearModel`.
        """
        outputs = self.model(
            input_ids, attention_mask, inputs_embeds, class_ids, output_hidden_states=output_hidden_states
        )
        logits = self.lm_head(outputs[0])
        loss = None if labels is None else token_loss(logits, labels, kwargs.get("num_items_in_batch"))
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


def _attention(config: NonLinearConfig, kind: LayerKind) -> GridAttention:
    d, heads = config.hidden_size, config.num_attention_heads
    if kind == "chunk":
        return ChunkAttention(d, config.chunk or 1, heads)
    return Global2DAttention(d, heads) if kind == "global" else Local2DAttention(d, config.window_size, heads)
