"""`CohomologicalTransformer`: a language model in three levels, local to global, that pass on a sequence component.

Level n reads its sequence component off the residual stream (`SequenceTracker`) and hands x + T_n(x) to the next level
(`ExactSequencePreservingTransition`). With exact="hard" T_1 cannot read what T_0 wrote into the first s coordinates:
the maps between levels form a complex C^0 -> C^1 -> C^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import ModelOutput

from cohomcli.errors import UsageError
from cohomcli.nn.block import Block, mark_residual_writers
from cohomcli.nn.cohomological_config import CohomologicalConfig
from cohomcli.nn.exactness import MapPair
from cohomcli.nn.local import LocalAttention
from cohomcli.nn.losses import next_token_loss, token_loss
from cohomcli.nn.pretrained import CohomPreTrained
from cohomcli.nn.sequence import ExactSequencePreservingTransition, SequenceTracker
from cohomcli.nn.spectral import default_windows

_MEASURED_ROWS = 1024  # tokens that go into the exactness loss: enough for a second moment, cheap in every batch
_PAGE_SHARE = 4  # one text of this many is seen under other windows


@dataclass
class CohomologicalOutput(ModelOutput):  # type: ignore[misc]
    """`last_hidden_state` (B, T, d) of the backbone, or `logits` (B, T, V) and `loss` of the model.

    With `return_structure`: `sequence_components`, three of (B, T, s); `map_pairs` for the exact-sequence loss; and
    `pages`, each (b, T, d), for the spectral loss: the last attention on the first quarter of the texts under growing
    windows, with their `page_mask` (b, T) or None.
    """

    last_hidden_state: Tensor | None = None
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    sequence_components: tuple[Tensor, ...] | None = None
    map_pairs: list[MapPair] | None = None
    pages: list[Tensor] | None = None
    page_mask: Tensor | None = None


class CohomologicalPreTrained(CohomPreTrained):
    """What the backbone and the model share."""

    config_class = CohomologicalConfig

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SequenceTracker):
            nn.init.normal_(module.reflectors)
            nn.init.ones_(module.sequence_mask)
        if isinstance(module, ExactSequencePreservingTransition):
            nn.init.normal_(module.reader, std=module.in_dim**-0.5)
            nn.init.normal_(module.writer, std=self.config.initializer_range)


class CohomologicalModel(CohomologicalPreTrained):
    """The backbone: embeddings, three levels of blocks, final norm."""

    def __init__(self, config: CohomologicalConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            LevelBlock(config, level, is_first=at == 0)
            for level, (n_layer, _, _) in enumerate(config.levels())
            for at in range(n_layer)
        )
        self.final_norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_structure: bool = False,
        **kwargs: Any,
    ) -> CohomologicalOutput:
        """Hidden states (B, T, d) of `input_ids` (B, T); `attention_mask` (B, T) is non-zero on real tokens.

        `inputs_embeds` (B, T, d) replaces the ids. `return_structure` adds what the structural losses need. Other
        keywords of the transformers interface (use_cache, token_type_ids) mean nothing here.

        Raises:
            UsageError: no input is given.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None and input_ids is not None else inputs_embeds
        if x is None:
            raise UsageError("no tokens were given", "pass input_ids (B, T)")
        found = Structure() if return_structure else None
        image: Tensor | None = None
        seen = [x]
        for block in self.layers:
            x = block(x, attention_mask, image=image, found=found, eager=self.eager)
            seen.append(x)
            if self.config.exact == "hard" and isinstance(block.transition, ExactSequencePreservingTransition):
                image = block.transition.image()
        output = CohomologicalOutput(
            last_hidden_state=self.final_norm(x), hidden_states=self.wanted_states(seen, output_hidden_states)
        )
        if found is not None:
            output.sequence_components, output.map_pairs = tuple(found.components), found.pairs
            output.pages, output.page_mask = self._pages(found, attention_mask)
        return output

    def _pages(self, found: Structure, mask: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """The last block's attention under growing windows, the widest being its own, with the mask of those texts."""
        attended = cast(Tensor, found.attended)
        b = -(-len(attended) // _PAGE_SHARE)
        part = None if mask is None else mask[:b]
        attn = cast(Any, self.layers[-1]).attn
        own = attn.window_size
        windows = [w for w in default_windows(3)[:-1] if own is None or (w is not None and w < own)]
        return attn.pages(attended[:b], [*windows, own], part), part


class Structure:
    """What the structural losses need of one forward pass; the blocks fill it in."""

    def __init__(self) -> None:
        self.components: list[Tensor] = []
        self.pairs: list[MapPair] = []
        self.before: tuple[Tensor, Tensor] | None = None
        self.attended: Tensor | None = None

    def add_map(self, S: Tensor, s: int, x: Tensor) -> None:
        """Note the sequence map `S` (s, d) of a transition and its inputs `x` (B, T, d)."""
        if self.before is not None:
            name = f"H{len(self.pairs)} -> H{len(self.pairs) + 1} -> H{len(self.pairs) + 2}"
            self.pairs.append(MapPair(self.before[0], S[:, :s], self.before[1], name))
        self.before = (S, x.flatten(0, -2)[:_MEASURED_ROWS])


class LevelBlock(Block):
    """A block of one level; the first of a level also takes the step into it.

    That step is x + T(x) from the level below, x being weighted by the tracker, which reads the sequence component off.
    """

    def __init__(self, config: CohomologicalConfig, level: int, *, is_first: bool) -> None:
        d, s = config.hidden_size, config.sequence_dim
        _, heads, window = config.levels()[level]
        attention = LocalAttention(d, heads, window, causal=config.causal)
        super().__init__(d, attention, config.intermediate_size, config.dropout)
        self.transition = ExactSequencePreservingTransition(d, d, s) if is_first and level else None
        self.tracker = SequenceTracker(d, s) if is_first else None
        mark_residual_writers(self, config.num_hidden_layers)
        self.step = (2 * config.num_hidden_layers) ** -0.5

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        *,
        image: Tensor | None = None,
        found: Structure | None = None,
        eager: bool = False,
    ) -> Tensor:
        """`hidden_states` (B, T, d) to the same; `image` (s, r) is what the transition before this one wrote."""
        x, written = hidden_states, None
        if self.transition is not None:
            # unit mean square per token: one scalar, so that compositions that are zero stay zero
            normed = x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
            written = self.step * self.transition(normed, image)
            if found is not None:
                found.add_map(self.transition.sequence_map(image), self.transition.sequence_dim, normed)
        if self.tracker is not None:
            seq, other = self.tracker(x)
            x = self.tracker.combine(seq, other)
            if found is not None:
                found.components.append(seq)
        if written is not None:  # behind the tracker's change of basis: only residual paths lie before the next
            x = x + written
        if found is not None:
            found.attended = self.norm_1(x)
        return super().forward(x, mask, eager=eager)


class CohomologicalTransformer(CohomologicalPreTrained, GenerationMixin):  # type: ignore[misc]
    """Token logits, left to right (causal) or for masked positions.

    Build it from a `CohomologicalConfig`, or from that configuration's arguments by name:
    `CohomologicalTransformer(vocab_size=100, dim=64, sequence_dim=16, num_h0_layers=2)`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: CohomologicalConfig | None = None, **settings: Any) -> None:
        super().__init__(CohomologicalConfig(**settings) if config is None else config)
        self.model = CohomologicalModel(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_structure: bool = False,
        **kwargs: Any,
    ) -> CohomologicalOutput:
        """`logits` (B, T, V), and `loss` when `labels` (B, T) are given, -100 where nothing is to be predicted.

        A causal model predicts each label from the tokens before it, a masked one from all around it. The rest as in
        `CohomologicalModel`.
        """
        output = self.model(
            input_ids,
            attention_mask,
            inputs_embeds,
            output_hidden_states=output_hidden_states,
            return_structure=return_structure,
        )
        logits = self.lm_head(output[0])
        loss = None
        if labels is not None:
            criterion = next_token_loss if self.config.causal else token_loss
            loss = criterion(logits, labels, kwargs.get("num_items_in_batch"))
        return CohomologicalOutput(
            loss=loss,
            logits=logits,
            hidden_states=output.hidden_states,
            sequence_components=output.sequence_components,
            map_pairs=output.map_pairs,
            pages=output.pages,
            page_mask=output.page_mask,
        )

    def prepare_inputs_for_generation(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """Generation re-reads the whole text at every step: there is no key-value cache."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}
