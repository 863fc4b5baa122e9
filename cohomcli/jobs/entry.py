"""One entry: one model on one data set, from the loaded model to its topology and metrics."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cohomcli import __version__
from cohomcli.config import Config
from cohomcli.data.spec import TextSample
from cohomcli.jobs.backend import parallel_backend
from cohomcli.models.spec import ActivationOptions, Activations, LoadedModel, LoadOptions
from cohomcli.models.store import Allocate, in_memory, on_disk
from cohomcli.progress import Progress
from cohomcli.results import Claim, Entry
from cohomcli.runs.cache import ActivationCache, cache_root, content_key
from cohomcli.runs.files import writing
from cohomcli.topology.results import EvidenceOptions, TopologyOptions, TopologyResult

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
    wanted = config.topology
    return TopologyOptions(
        pca=wanted.pca,
        maxdim=wanted.maxdim,
        metric=wanted.metric,
        engine=wanted.engine,
        compat=wanted.compat,
        workers=workers,
        seed=config.compute.seed,
        available_bytes=memory_limit(config),
        time_limit=wanted.time_limit or None,
        threshold=wanted.threshold,
        threshold_unit=wanted.threshold_unit,
        landmarks=wanted.landmarks,
        representatives=wanted.representatives,
        geometry=wanted.geometry,
        evidence=evidence_options(config),
    )


def evidence_options(config: Config) -> EvidenceOptions | None:
    """The evidence that a configuration asks for; None when it asks for none."""
    wanted = config.evidence
    if wanted.null_model == "none" and not wanted.bands:
        return None
    return EvidenceOptions(
        null=wanted.null_model,
        replicates=wanted.replicates,
        subsamples=wanted.subsamples if wanted.bands else 0,
        max_points=wanted.max_points,
    )


def memory_limit(config: Config) -> int:
    """Bytes the analysis may use: what is free, or less where the configuration says so."""
    from cohomcli.models.memory import available_bytes

    free, wished = available_bytes(), int(config.compute.memory * 2**30)
    return min(free, wished) if wished else free


def analyse_entry(
    task: Task, loaded: LoadedModel, sample: TextSample, config: Config, workers: int, progress: Progress
) -> Entry:
    """Collect activations and metrics of `loaded` on `sample`, then the topology of every layer."""
    from cohomcli.jobs.representation import attention_of, representation_claims, representation_of
    from cohomcli.topology.analysis import analyze_layers

    attention = attention_of(loaded, sample, config, progress)
    with allocator(loaded, len(sample.texts), config) as allocate:
        activations = collect_cached(loaded, sample, config, progress, allocate)
        options = topology_options(config, workers)
        log_forecast(activations, options)
        with parallel_backend(config.compute, workers):
            topology = analyze_layers(activations.layers, options, progress)
        representation = representation_of(activations.layers, attention, config, progress)
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
        representation=representation,
        claims=(*_claims(task, topology, activations), *representation_claims(task.model, topology, representation)),
        notes=(*loaded.notes, *sample.notes, *activations.notes, *topology.notes),
        activations=activations.layers,
    )


@contextmanager
def allocator(loaded: LoadedModel, n_texts: int, config: Config) -> Iterator[Allocate]:
    """Where activations are collected: in memory, or in files that are gone when this context ends.

    With `activations.stream` at "auto", files are used when the activations would take half of the memory.
    """
    wish, needed = config.activations.stream, _activation_bytes(loaded, n_texts, config)
    if wish == "never" or (wish == "auto" and needed <= memory_limit(config) // 2):
        yield in_memory
        return
    logger.info("about %.1f MiB of activations are kept on disk, memory-mapped", needed / 2**20)
    folder = cache_root() / "streams"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
            yield on_disk(Path(place))


def _activation_bytes(loaded: LoadedModel, n_texts: int, config: Config) -> int:
    wanted = config.activations
    layers = (loaded.info.n_layer + 2) * len(wanted.sites) if wanted.layers == ["all"] else len(wanted.layers)
    return 4 * layers * n_texts * loaded.info.hidden_size


def log_forecast(activations: Activations, options: TopologyOptions) -> None:
    """Say what the topology will take before it starts."""
    from cohomcli.topology.forecast import duration, forecast, size

    n, d = max((x.shape for x in activations.layers.values()), default=(0, 0))
    width = min(options.pca or d, d) if options.metric == "euclidean" else d
    points = min(n, options.landmarks or n)
    one = forecast(points, options.maxdim, options.engine, width)
    total = duration(one.seconds * len(activations.layers))
    what = f"H{options.maxdim} of {points} points in {len(activations.layers)} layers"
    logger.info("forecast: up to %s: %s per layer at a time, %s of one core", what, size(one.n_bytes), total)


def collect_cached(
    loaded: LoadedModel,
    sample: TextSample,
    config: Config,
    progress: Progress,
    allocate: Allocate = in_memory,
) -> Activations:
    """Activations and metrics from the cache when weights, tokens and options are all equal, else computed."""
    from cohomcli.models.activations import collect

    options = activation_options(config)
    if not config.activations.cache:
        return collect(loaded, sample.texts, options, progress, allocate)
    cache = ActivationCache(cache_root() / "activations")
    key = content_key(_identity(loaded, options, sample.texts), sample.texts)
    if (stored := cache.get(key)) is not None:
        logger.info("activations of %s read from the cache (%s)", loaded.info.name, key[:12])
        return stored
    activations = collect(loaded, sample.texts, options, progress, allocate)
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
    evidence = next((layer.evidence for layer in topology.layers if layer.evidence), None)
    if evidence is not None and evidence.null is not None:
        what = f"p-values of gaps and loops in {layers} layers of {task.model}, null model {evidence.null}"
        claims.append(Claim(f"{what}, {evidence.replicates} replicates", "estimated"))
    if evidence is not None and evidence.subsamples:
        claims.append(Claim(f"95% confidence limits of the figures of {layers} layers of {task.model}", "estimated"))
    if activations.metrics:
        exact = activations.metrics.standard_error is None
        what = f"{activations.metrics.kind} of {task.model} on the named texts"
        claims.append(Claim(what, "measured" if exact else "estimated"))
    return tuple(claims)
