"""Collect pooled activations of every layer in one forward pass per batch.

Hooks pool each layer's output the moment it appears, so only (texts, width) per layer is ever kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cohomcli.errors import AnalysisIncomplete, UsageError
from cohomcli.models.batching import Batch, Encoded, batches, encode
from cohomcli.models.language import CausalScorer, pseudo_perplexity, why_not
from cohomcli.models.layernames import StackNames, select_layers
from cohomcli.models.layout import Layout, Stack, block_input, first_tensor, run_stack, site_module
from cohomcli.models.memory import choose_token_budget, forecast
from cohomcli.models.pooling import pool, resolve_pooling
from cohomcli.models.probe import find_layout
from cohomcli.models.spec import ActivationOptions, Activations, LanguageMetrics, LoadedModel, PoolingName
from cohomcli.models.store import Allocate, in_memory
from cohomcli.progress import Progress, silent

Sink = Callable[[str, Tensor], None]


class _Enough(Exception):  # control flow, not an error
    """The last wanted layer has been seen: the rest of the forward pass is not needed."""


def collect(
    loaded: LoadedModel,
    texts: Sequence[str],
    options: ActivationOptions,
    progress: Progress = silent,
    allocate: Allocate = in_memory,
) -> Activations:
    """Pooled activations (n_texts, width) float32 per layer, rows in the order of `texts`.

    `allocate` gives the array of every layer, which may lie on disk (`store.on_disk`).

    Causal perplexity comes from the same pass; pseudo-perplexity of masked models needs its own. Without it the
    head never runs, and the pass stops after the last selected layer.

    Raises:
        UsageError: an unknown layer, site or pooling, or a `max_length` without room.
        InputRefused: a text without tokens, or a tokenizer of another model.
        AnalysisIncomplete: a NaN or infinite activation, or not enough memory.
    """
    with torch.inference_mode(), _memory_errors(loaded):
        job = replace(_prepare(loaded, texts, options), allocate=allocate)
        scorer = CausalScorer(loaded, job.layout) if options.perplexity and loaded.info.lm_head == "causal" else None
        layers = _run(loaded, job, scorer, progress)
        metrics, reason = _measured(loaded, job, scorer, progress) if options.perplexity else (None, "not asked for")
    return Activations(
        layers=layers,
        pooling=job.pooling_name,
        n_tokens=job.encoded.n_tokens,
        n_truncated=job.encoded.n_truncated,
        metrics=metrics,
        metrics_reason=reason,
        notes=job.notes,
    )


def measure(
    loaded: LoadedModel, texts: Sequence[str], options: ActivationOptions, progress: Progress = silent
) -> tuple[LanguageMetrics | None, str]:
    """The language metrics alone, or None with the reason. Raises as `collect` does."""
    with torch.inference_mode(), _memory_errors(loaded):
        job = _prepare(loaded, texts, options)
        scorer = CausalScorer(loaded, job.layout) if loaded.info.lm_head == "causal" else None
        if scorer is not None:
            for batch in _batches(loaded, job, progress):
                states = run_stack(job.layout.stacks[0], batch.ids, batch.mask, None, batch.mask)
                scorer.add(states, batch.ids, batch.mask)
        return _measured(loaded, job, scorer, progress)


@dataclass(frozen=True)
class _Job:
    """Everything decided before the first batch. `options` carries the chosen token budget."""

    layout: Layout
    encoded: Encoded
    selected: tuple[str, ...]
    pooling: dict[str, PoolingName]
    options: ActivationOptions
    notes: tuple[str, ...]
    allocate: Allocate = in_memory

    @property
    def pooling_name(self) -> str:
        """What was pooled how: "last", or per stack where stacks differ."""
        if len(set(self.pooling.values())) == 1:
            return next(iter(self.pooling.values()))
        return ", ".join(f"{prefix.rstrip('.')} {how}" for prefix, how in self.pooling.items())


def _prepare(loaded: LoadedModel, texts: Sequence[str], options: ActivationOptions) -> _Job:
    if options.pooling not in ("auto", "last", "cls", "mean"):
        raise UsageError(f"unknown pooling {options.pooling!r}", "use auto, last, cls or mean")
    layout = find_layout(loaded.model)
    names = [StackNames(s.prefix, s.n_layer, s.final_norm is not None) for s in layout.stacks]
    selected = select_layers(names, options.layers, options.sites)
    encoded = encode(loaded, texts, options.max_length)
    longest = max(map(len, encoded.ids))
    needs = forecast(loaded.model.config, loaded.info.n_parameters, longest, options.perplexity)
    budget = choose_token_budget(needs, longest, options.token_budget)
    pooling = {s.prefix: resolve_pooling(options.pooling, loaded.info.kind, s.prefix) for s in layout.stacks}
    return _Job(
        layout=layout,
        encoded=encoded,
        selected=tuple(selected),
        pooling=pooling,
        options=replace(options, token_budget=budget),
        notes=tuple(_notes(loaded, encoded, options, pooling)),
    )


def _notes(
    loaded: LoadedModel, encoded: Encoded, options: ActivationOptions, pooling: dict[str, PoolingName]
) -> Iterator[str]:
    if encoded.n_truncated and encoded.max_length < options.max_length:
        yield f"max_length {options.max_length} was lowered to {encoded.max_length}, the most this model reads"
    if encoded.n_truncated:
        yield f"{encoded.n_truncated} of {len(encoded.ids)} texts were cut at {encoded.max_length} tokens"
    if "cls" in pooling.values() and loaded.info.kind != "encoder":
        yield "pooling cls takes the first token, which in a decoder sees nothing of the rest of the text"


def _batches(loaded: LoadedModel, job: _Job, progress: Progress) -> Iterator[Batch]:
    done, total = 0, len(job.encoded.ids)
    for batch in batches(loaded, job.encoded.ids, job.options.token_budget, job.layout.sees_padding):
        yield batch
        done += len(batch.rows)
        progress("extract", done, total)


def _run(
    loaded: LoadedModel, job: _Job, scorer: CausalScorer | None, progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """Run every batch through every stack; returns the pooled layers in forward order."""
    table = _Table(job.selected, len(job.encoded.ids), job.allocate)
    decoder_wanted = any(name.startswith("decoder.") for name in job.selected)
    for batch in _batches(loaded, job, progress):
        states: Tensor | None = None
        for stack in job.layout.stacks:
            wanted = [name for name in job.selected if name.startswith(stack.prefix)]
            # a decoder reads what its encoder wrote, and the head what its stack wrote: then the stack runs to its end
            is_read = scorer is not None or (stack.prefix == "encoder." and decoder_wanted)
            if not wanted and not is_read:
                continue
            ids = _shifted(loaded, batch.ids) if stack.prefix == "decoder." else batch.ids
            hooks = _Hooks(stack, wanted, table.sink(batch, job.pooling[stack.prefix]), batch, stop_early=not is_read)
            with hooks.attached(), suppress(_Enough):
                states = run_stack(stack, ids, batch.mask, states, batch.mask)
        if scorer is not None and states is not None:
            scorer.add(states, batch.ids, batch.mask)
    return table.layers


class _Table:
    """One (n_texts, width) float32 array per layer, allocated when the layer's width is first seen."""

    def __init__(self, names: Sequence[str], n_texts: int, allocate: Allocate) -> None:
        self._names, self._n_texts, self._allocate = names, n_texts, allocate
        self._rows: dict[str, NDArray[np.float32]] = {}

    @property
    def layers(self) -> dict[str, NDArray[np.float32]]:
        """The arrays in forward order."""
        return {name: self._rows[name] for name in self._names}

    def sink(self, batch: Batch, pooling: PoolingName) -> Sink:
        """A callback that pools one layer's (B, T, d) of `batch` into the right rows."""
        rows = np.array(batch.rows)

        def put(name: str, states: Tensor) -> None:
            vectors = pool(states, batch.mask, pooling).float().cpu().numpy()
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                raise AnalysisIncomplete(
                    f"{name} has NaN or infinite activations (text {rows[~finite].min() + 1})",
                    "the model overflows: check its weights, or leave the layer out with --layers",
                )
            if name not in self._rows:
                self._rows[name] = self._allocate(name, self._n_texts, vectors.shape[1])
            self._rows[name][rows] = vectors

        return put


class _Hooks:
    """Forward hooks on one stack that hand the wanted layers to a sink."""

    def __init__(self, stack: Stack, wanted: Sequence[str], sink: Sink, batch: Batch, stop_early: bool) -> None:
        self.stack, self.sink = stack, sink
        self.rows, self.width = batch.ids.shape
        self.wanted = set(wanted)
        self.last = wanted[-1] if wanted and stop_early else None
        self.done_blocks = 0

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = list(self._attach())
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _attach(self) -> Iterator[RemovableHandle]:
        for block in self.stack.blocks:
            yield block.register_forward_pre_hook(self._before_block, with_kwargs=True)
            yield block.register_forward_hook(self._after_block)
            for site in ("attention", "mlp"):
                if any(name.endswith(f".{site}") for name in self.wanted):
                    yield self._part(block, site).register_forward_hook(self._after_site(site))
        if self.stack.final_norm is not None:
            yield self.stack.final_norm.register_forward_hook(self._after_norm)

    def _part(self, block: nn.Module, site: str) -> nn.Module:
        part = site_module(block, site)
        if part is None:
            raise UsageError(f"{type(block).__name__} has no {site} part known here", "use --sites block")
        return part

    def _before_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.done_blocks == 0:
            self._give("embedding", block_input(args, kwargs))

    def _after_block(self, module: nn.Module, args: Any, output: Any) -> None:
        index, self.done_blocks = self.done_blocks, self.done_blocks + 1
        self._give(f"layer_{index}", first_tensor(output))

    def _after_site(self, site: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._give(f"layer_{self.done_blocks}.{site}", first_tensor(output))

        return hook

    def _after_norm(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.done_blocks == self.stack.n_layer:
            self._give("final_norm", first_tensor(output))

    def _give(self, name: str, states: Tensor) -> None:
        full = self.stack.prefix + name
        if full not in self.wanted:
            return
        if states.ndim == 2:  # some MLPs work on flattened (B * T, d)
            states = states.view(self.rows, -1, states.shape[-1])
        self.sink(full, states[:, : self.width])  # some models pad inside, on the right, to whole windows
        if full == self.last:
            raise _Enough


def _shifted(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """Teacher forcing: the text moved right by one, after the decoder's start token."""
    config: Any = loaded.model.config
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        start = next((i for i in (config.bos_token_id, config.pad_token_id) if i is not None), 0)
    first = torch.full_like(ids[:, :1], int(start))
    return torch.cat([first, ids[:, :-1]], dim=1)


def _measured(
    loaded: LoadedModel, job: _Job, scorer: CausalScorer | None, progress: Progress
) -> tuple[LanguageMetrics | None, str]:
    reason = why_not(loaded)
    if reason:
        return None, reason
    if scorer is not None:
        metrics = scorer.result()
    else:
        metrics = pseudo_perplexity(loaded, job.layout, job.encoded, job.options, progress)
    return metrics, "" if metrics is not None else "no text has a token to predict"


@contextmanager
def _memory_errors(loaded: LoadedModel) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # an accelerator's memory is not in our forecast
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        raise AnalysisIncomplete(
            f"{loaded.info.name}: out of memory in the forward pass", "lower --max-length or the token budget"
        ) from error
