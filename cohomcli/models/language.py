"""True language-modelling metrics: perplexity of causal models, pseudo-perplexity of masked ones.

Masked models: Salazar, Liang, Nguyen, Kirchhoff, "Masked Language Model Scoring", ACL 2020, arXiv:1910.14659.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cohomcli.errors import AnalysisIncomplete
from cohomcli.models.batching import Encoded, batches
from cohomcli.models.heads import Scores, score
from cohomcli.models.layout import Layout, run_stack
from cohomcli.models.spec import ActivationOptions, LanguageMetrics, LoadedModel
from cohomcli.progress import Progress


def why_not(loaded: LoadedModel) -> str:
    """Why no metric can be computed, or "" when one can."""
    if loaded.info.kind == "encoder-decoder":
        return "perplexity is not defined for an encoder-decoder that reads and predicts the same text"
    if loaded.info.lm_head is None:
        return "the checkpoint has no language-modelling head"
    if loaded.info.lm_head == "masked" and getattr(loaded.tokenizer, "mask_token_id", None) is None:
        return "the tokenizer has no mask token"
    return ""


@dataclass
class CausalScorer:
    """Sums the next-token scores of batches as they pass: perplexity = exp(sum of nats / number of predictions).

    Every token of every text is predicted from those before it; a text's first token is only predicted where the
    tokenizer puts a beginning-of-text token in front.
    """

    loaded: LoadedModel
    layout: Layout
    _losses: list[float] = field(default_factory=list)
    _hits: int = 0
    _count: int = 0

    def add(self, states: Tensor, ids: Tensor, mask: Tensor) -> None:
        """Score one batch: `states` (B, T, d) are the last hidden states, `ids` and `mask` (B, T)."""
        kept = mask[:, 1:] * mask[:, :-1] != 0
        if not kept.any():
            return
        scores = score(self.loaded.model, self.layout.stacks[0], states[:, :-1][kept], ids[:, 1:][kept])
        self._losses.append(float(scores.loss.sum()))
        self._hits += int(scores.hit.sum())
        self._count += len(scores.hit)

    def result(self) -> LanguageMetrics | None:
        """Perplexity over everything added, or None when no text had two tokens.

        Raises:
            AnalysisIncomplete: the loss is not finite.
        """
        if not self._count:
            return None
        return _metrics(
            "perplexity", math.fsum(self._losses) / self._count, self._hits / self._count, self._count, None
        )


def pseudo_perplexity(
    loaded: LoadedModel, layout: Layout, encoded: Encoded, options: ActivationOptions, progress: Progress
) -> LanguageMetrics | None:
    """Hide one position at a time and score the token that stood there (Salazar et al. 2020).

    All positions when `options.mask_positions` is 0 (exact), else at most that many per text, drawn with
    `options.seed`. The loss is the mean over texts of their mean loss, weighted by their number of positions, so
    that a sample estimates the exact token-weighted figure. Its standard error takes texts as the units (ratio
    estimator, Cochran, Sampling Techniques, eq. 6.13 with n - 1): it covers the choice of positions and of texts.

    Raises:
        AnalysisIncomplete: the loss is not finite.
    """
    positions = _maskable(loaded, encoded)
    chosen = [_draw(row, options.mask_positions, options.seed, text) for text, row in enumerate(positions)]
    items = [(text, position) for text, row in enumerate(chosen) for position in row]
    if not items:
        return None
    scores = _score_masked(loaded, layout, encoded, items, options.token_budget, progress)
    texts = np.array([text for text, _ in items])
    weights = np.array([len(row) for row in positions], dtype=np.float64)
    loss, error = _weighted(scores.loss.numpy(), texts, weights)
    accuracy, _ = _weighted(scores.hit.numpy().astype(np.float64), texts, weights)
    sampled = len(items) < weights.sum()
    return _metrics("pseudo-perplexity", loss, accuracy, len(items), error if sampled else None)


def _score_masked(
    loaded: LoadedModel,
    layout: Layout,
    encoded: Encoded,
    items: list[tuple[int, int]],
    token_budget: int,
    progress: Progress,
) -> Scores:
    """Score of every (text, position) item, in order."""
    stack, device = layout.stacks[0], next(loaded.model.parameters()).device
    mask_id = int(loaded.tokenizer.mask_token_id)
    hidden = [_with(encoded.ids[text], position, mask_id) for text, position in items]
    targets = torch.tensor([encoded.ids[text][position] for text, position in items])
    loss, hit = torch.empty(len(items), dtype=torch.float64), torch.empty(len(items), dtype=torch.bool)
    done = 0
    for batch in batches(loaded, hidden, token_budget, layout.sees_padding):
        rows = torch.tensor(batch.rows)
        states = run_stack(stack, batch.ids, batch.mask, None, batch.mask)
        at = torch.tensor([items[row][1] for row in batch.rows], device=device)
        masked = states[torch.arange(len(at), device=device), at]
        scores = score(loaded.model, stack, masked, targets[rows].to(device))
        loss[rows], hit[rows] = scores.loss, scores.hit
        done += len(rows)
        progress("mask", done, len(items))
    return Scores(loss, hit)


def _maskable(loaded: LoadedModel, encoded: Encoded) -> list[list[int]]:
    """Positions per text that hold text: everything but the special tokens (an unknown token is text)."""
    names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
    special = {getattr(loaded.tokenizer, name, None) for name in names}
    return [[at for at, token in enumerate(row) if token not in special] for row in encoded.ids]


def _draw(positions: list[int], count: int, seed: int, text: int) -> list[int]:
    """`count` of `positions` (0: all), the same for a text whatever other texts surround the draw."""
    if count == 0 or len(positions) <= count:
        return positions
    generator = np.random.default_rng([seed, text])
    return sorted(int(position) for position in generator.choice(positions, size=count, replace=False))


def _with(row: Sequence[int], position: int, token: int) -> list[int]:
    return [*row[:position], token, *row[position + 1 :]]


def _weighted(values: np.ndarray, texts: np.ndarray, weights: np.ndarray) -> tuple[float, float | None]:
    """Mean of the texts' mean `values`, weighted, and its standard error with texts as units (None for one text).

    `values` and `texts` are (P,); `weights` is (n_texts,). Texts without a value do not take part.
    """
    counts = np.bincount(texts, minlength=len(weights))
    present = counts > 0
    means = np.bincount(texts, values, minlength=len(weights))[present] / counts[present]
    share = weights[present] / weights[present].sum()
    mean = float(share @ means)
    n = len(means)
    if n < 2:
        return mean, None
    return mean, float(np.sqrt(n / (n - 1) * np.sum((share * (means - mean)) ** 2)))


def _metrics(
    kind: Literal["perplexity", "pseudo-perplexity"],
    loss: float,
    accuracy: float,
    n_predictions: int,
    standard_error: float | None,
) -> LanguageMetrics:
    if not loss < 700:  # NaN, or a perplexity no float holds
        raise AnalysisIncomplete(
            f"the loss is {loss:.4g} nats per token", "the model's weights overflow on these texts"
        )
    return LanguageMetrics(kind, loss, math.exp(loss), accuracy, n_predictions, standard_error)
