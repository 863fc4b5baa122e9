"""Sections on what is analysed: texts, models, activations, topology, evidence, comparison."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cohomcli.config.section import Section


class DataConfig(Section):
    """Which texts are analysed."""

    samples: int = Field(200, ge=1, description="distinct texts to analyse, exactly this many")
    config: str | None = Field(None, description="configuration of a hub data set")
    split: str | None = Field(None, description="split of the data set; for files: calibration or heldout by hash")
    field: str | None = Field(None, description="text column of jsonl, csv and hub data sets")
    unit: Literal["auto", "line", "paragraph", "file"] = Field("auto", description="one text of a plain text file")
    revision: str | None = Field(None, description="revision of a hub data set")


class LoadingConfig(Section):
    """How models are loaded."""

    trust_remote_code: bool = Field(False, description="run Python code shipped with a model")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    tokenizer: str | None = Field(None, description="folder, built-in or hub id whose tokenizer replaces the model's")
    config_json: str | None = Field(None, description="config.json for a model file that has none")
    model_code: str | None = Field(None, description="file.py:function that builds the model of a weights file; is run")
    weights_at: str | None = Field(None, description="place of the weights inside a checkpoint, such as ema.state_dict")
    trust: bool = Field(False, description="run the code inside a model file, in a child process with limits")


class ActivationConfig(Section):
    """Which activations are collected, and how a text becomes one point."""

    layers: list[str] = Field(["all"], description="all, or names: embedding, layer_0, 0-5, -1, final_norm")
    sites: list[Literal["block", "attention", "mlp"]] = Field(["block"], description="outputs to collect in a block")
    pooling: Literal["auto", "last", "cls", "mean"] = Field(
        "auto", description="auto: last token for decoders, mean for encoders"
    )
    max_length: int = Field(128, ge=2, description="tokens kept of a text")
    token_budget: int = Field(0, ge=0, description="tokens per batch; 0 chooses from the memory forecast")
    stream: Literal["auto", "always", "never"] = Field(
        "auto", description="keep activations on disk, memory-mapped; auto: when they would take half of the memory"
    )
    cache: bool = Field(True, description="reuse activations of an equal model, texts and options")
    store: Literal["auto", "always", "never"] = Field(
        "auto", description="keep pooled activations in the run folder for later comparisons; auto: up to 256 MiB"
    )


class MetricsConfig(Section):
    """Language-modelling metrics on the analysed texts."""

    perplexity: bool = Field(True, description="measure perplexity and accuracy where the model has such a head")
    positions: int = Field(8, ge=0, description="masked positions per text for encoders; 0 masks every position")


class TopologyConfig(Section):
    """How a layer's point cloud is analysed."""

    pca: int = Field(50, ge=0, description="principal components kept; 0 keeps the full width")
    maxdim: int = Field(1, ge=0, le=2, description="highest homology dimension")
    metric: str = Field("euclidean", description="euclidean, cosine, cityblock, chebyshev or correlation")
    engine: str = Field("auto", description="auto, redzed or ripser")
    threshold: float | None = Field(None, ge=0, description="length at which the filtration ends; none completes it")
    threshold_unit: Literal["distance", "scale"] = Field(
        "distance", description="unit of threshold: of the metric, or the layer's mean pairwise distance"
    )
    landmarks: int = Field(0, ge=0, description="analyse so many maxmin landmarks, with a guaranteed error; 0: all")
    representatives: int = Field(0, ge=0, description="longest H1 bars of a layer whose texts are named")
    time_limit: float = Field(3600.0, ge=0, description="CPU seconds the forecast may have; 0 lifts the limit")
    compat: Literal["todacomm"] | None = Field(None, description="also report the figures as todacomm defines them")
    vectors: bool = Field(False, description="also write diagrams as vectors: landscapes, silhouettes, images, curves")
    geometry: bool = Field(True, description="intrinsic dimension, hubness and anisotropy of every layer")
    similarity: list[str] = Field([], description="measures between layers: cka, svcca, rtd, rtd-lite, nts-e, ...")
    track_neighbours: int = Field(5, ge=0, description="neighbours in the graphs tracked over the layers; 0: none")
    attention_texts: int = Field(0, ge=0, description="texts whose attention graphs are analysed, per head; 0: none")


class EvidenceConfig(Section):
    """What says whether a layer's shape is more than chance."""

    null_model: Literal["rotation", "gaussian", "column", "none"] = Field(
        "rotation", description="structureless clouds to test against: rotation (exact), gaussian, column, or none"
    )
    replicates: int = Field(199, ge=1, description="clouds of the null model per layer")
    bands: bool = Field(True, description="95% confidence limits of figures and Betti curves, by subsampling")
    subsamples: int = Field(100, ge=4, description="subsamples in halves behind the confidence limits")
    max_points: int = Field(
        500, ge=1, description="larger clouds are tested on a sample of so many points, and get no confidence limits"
    )


class CompareConfig(Section):
    """What `cohom compare` compares, and how."""

    baseline: str | None = Field(None, description="run folder or model that drift is measured from; else the first")
    checkpoints: str | None = Field(None, description="folder of checkpoints, or a hub model whose revisions are named")
    revisions: list[str] = Field([], description="revisions of that hub model, in order of training")
    measure: str = Field("auto", description="auto, a bounded measure such as cka-debiased or nts-e, or diagrams")
    cross: str = Field("auto", description="measure of all layers against all of another model: auto (of drift), none")
    permutations: int = Field(0, ge=0, description="random arrangements of the permutation tests by texts; 0: no test")
    population: list[str] = Field([], description="models of one population, such as seeds, to rank each model among")
