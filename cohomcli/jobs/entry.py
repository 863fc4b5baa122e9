"""One entry: one model on one data set, from the loaded model to its topology and metrics."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cohomcli import __version__
from cohomcli.config import Config
from cohomcli.data.spec import TextSample
from cohomcli.models.spec import ActivationOptions, Activations, LoadedModel, LoadOptions
from cohomcli.progress import Progress
from cohomcli.results import Claim, Entry
from cohomcli.runs.cache import ActivationCache, cache_root, content_key
from cohomcli.topology.results import TopologyOptions, TopologyResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A model (as the user named it, and as reports will call it) to be analysed on a data set."""

    reference: str
    dataset_reference: str
    model: str
    dataset: str

    @property
    def stage(self) -> str:
        """The name of this task's stage in the manifest."""
        return f"{self.model} on {self.dataset}"


def load_options(config: Config) -> LoadOptions:
    """The loading options that a configuration asks for."""
    wanted = config.loading
    return LoadOptions(
        device=config.compute.device,
        trust_remote_code=wanted.trust_remote_code,
        revision=wanted.revision,
        tokenizer=wanted.tokenizer,
        config_json=Path(wanted.config_json).expanduser() if wanted.config_json else None,
        model_code=wanted.model_code,
        weights_at=wanted.weights_at,
        trust=wanted.trust,
    )


def activation_options(config: Config) -> ActivationOptions:
    """The collection options that a configuration asks for."""
    wanted = config.activations
    layers = () if wanted.layers == ["all"] else tuple(wanted.layers)
    return ActivationOptions(
        layers=layers,
        sites=tuple(wanted.sites),
        pooling=wanted.pooling,
        max_length=wanted.max_length,
        token_budget=wanted.token_budget,
        perplexity=config.metrics.perplexity,
        mask_positions=config.metrics.positions,
        seed=config.compute.seed,
    )


def topology_options(config: Config, workers: int) -> TopologyOptions:
    """The persistence options that a configuration asks for, with the memory that is free now."""
    from cohomcli.models.memory import available_bytes

    wanted = config.topology
    return TopologyOptions(
        pca=wanted.pca,
        maxdim=wanted.maxdim,
        metric=wanted.metric,
        engine=wanted.engine,
        compat=wanted.compat,
        workers=workers,
        seed=config.compute.seed,
        available_bytes=available_bytes(),
    )


def analyse_entry(
    task: Task, loaded: LoadedModel, sample: TextSample, config: Config, workers: int, progress: Progress
) -> Entry:
    """Collect activations and metrics of `loaded` on `sample`, then the topology of every layer."""
    from cohomcli.topology.analysis import analyze_layers

    activations = collect_cached(loaded, sample, config, progress)
    topology = analyze_layers(activations.layers, topology_options(config, workers), progress)
    return Entry(
        model=task.model,
        dataset=task.dataset,
        info=loaded.info,
        sample=sample,
        pooling=activations.pooling,
        n_tokens=activations.n_tokens,
        n_truncated=activations.n_truncated,
        metrics=activations.metrics,
        metrics_reason=activations.metrics_reason,
        topology=topology,
        claims=_claims(task, topology, activations),
        notes=(*loaded.notes, *sample.notes, *activations.notes, *topology.notes),
    )


def collect_cached(loaded: LoadedModel, sample: TextSample, config: Config, progress: Progress) -> Activations:
    """Activations and metrics from the cache when weights, tokens and options are all equal, else computed."""
    from cohomcli.models.activations import collect

    options = activation_options(config)
    if not config.activations.cache:
        return collect(loaded, sample.texts, options, progress)
    cache = ActivationCache(cache_root() / "activations")
    key = content_key(_identity(loaded, options, sample.texts), sample.texts)
    if (stored := cache.get(key)) is not None:
        logger.info("activations of %s read from the cache (%s)", loaded.info.name, key[:12])
        return stored
    activations = collect(loaded, sample.texts, options, progress)
    cache.put(key, activations)
    return activations


def _identity(loaded: LoadedModel, options: ActivationOptions, texts: Sequence[str]) -> dict[str, Any]:
    """Everything besides the texts that decides the activations. Token ids stand for the tokenizer.

    The token budget only changes how texts are batched, and the device how fast they run.
    """
    import torch
    import transformers

    ids = loaded.tokenizer(list(texts), truncation=True, max_length=options.max_length)["input_ids"]
    decisive = {name: value for name, value in asdict(options).items() if name != "token_budget"}
    versions = [__version__, torch.__version__, transformers.__version__]
    weights = [loaded.info.weights_sha256, loaded.info.architecture, repr(loaded.model.config)]
    return {"weights": weights, "options": decisive, "ids": ids, "versions": versions}


def _claims(task: Task, topology: TopologyResult, activations: Activations) -> tuple[Claim, ...]:
    layers = len(topology.layers)
    claims = [
        Claim(f"persistence diagrams of {layers} layers of {task.model} on the named texts", "measured"),
    ]
    if activations.metrics:
        exact = activations.metrics.standard_error is None
        what = f"{activations.metrics.kind} of {task.model} on the named texts"
        claims.append(Claim(what, "measured" if exact else "estimated"))
    return tuple(claims)
