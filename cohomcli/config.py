"""The configuration of a command: one validated tree, filled from defaults, YAML, environment, `--set` and flags."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cohomcli.errors import InputRefused, UsageError
from cohomcli.gates import parse_gate
from cohomcli.registry import did_you_mean

ENV_PREFIX = "COHOM_"
# Keys that take a list, which a flag, --set or the environment may give as text with commas.
_LISTS = (
    "models",
    "datasets",
    "activations.layers",
    "activations.sites",
    "compare.revisions",
    "precision.formats",
    "precision.keep",
    "precision.inputs",
    "precision.heldout_inputs",
    "precision.outputs",
    "pruning.evaluate",
    "topology.similarity",
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """Which texts are analysed."""

    samples: int = Field(200, ge=1, description="distinct texts to analyse, exactly this many")
    config: str | None = Field(None, description="configuration of a hub data set")
    split: str | None = Field(None, description="split of the data set; for files: calibration or heldout by hash")
    field: str | None = Field(None, description="text column of jsonl, csv and hub data sets")
    unit: Literal["auto", "line", "paragraph", "file"] = Field("auto", description="one text of a plain text file")
    revision: str | None = Field(None, description="revision of a hub data set")


class LoadingConfig(_Section):
    """How models are loaded."""

    trust_remote_code: bool = Field(False, description="run Python code shipped with a model")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    tokenizer: str | None = Field(None, description="folder, built-in or hub id whose tokenizer replaces the model's")
    config_json: str | None = Field(None, description="config.json for a model file that has none")
    model_code: str | None = Field(None, description="file.py:function that builds the model of a weights file; is run")
    weights_at: str | None = Field(None, description="place of the weights inside a checkpoint, such as ema.state_dict")
    trust: bool = Field(False, description="run the code inside a model file, in a child process with limits")


class ActivationConfig(_Section):
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


class MetricsConfig(_Section):
    """Language-modelling metrics on the analysed texts."""

    perplexity: bool = Field(True, description="measure perplexity and accuracy where the model has such a head")
    positions: int = Field(8, ge=0, description="masked positions per text for encoders; 0 masks every position")


class TopologyConfig(_Section):
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
    geometry: bool = Field(True, description="intrinsic dimension, hubness and anisotropy of every layer")
    similarity: list[str] = Field([], description="measures between layers: cka, svcca, rtd, rtd-lite, nts-e, ...")
    track_neighbours: int = Field(5, ge=0, description="neighbours in the graphs tracked over the layers; 0: none")
    attention_texts: int = Field(0, ge=0, description="texts whose attention graphs are analysed, per head; 0: none")


class EvidenceConfig(_Section):
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


class PrecisionConfig(_Section):
    """What a mixed-precision plan must keep, and what it is made on."""

    enabled: bool = Field(True, description="make a plan as a stage of `cohom run`")
    epsilon: float = Field(1e-2, gt=0, lt=float("inf"), description="largest output error allowed, in the norm below")
    norm: Literal["rel-l2", "max-abs", "kl"] = Field("rel-l2", description="rel-l2, max-abs or kl (nats per position)")
    formats: list[str] = Field(
        ["fp32", "bf16", "fp16"], min_length=1, description="of fp64, fp32, bf16, fp16, e4m3, e5m2, int8"
    )
    objective: str = Field("bytes", description="what is minimised: bytes, weights, or a JSON file of costs")
    granularity: Literal["op", "module", "block"] = Field("op", description="what takes one format: op, module, block")
    keep: list[str] = Field([], description="formats that are wished for: pattern=format, for example lm_head=fp32")
    hardware: str | None = Field(None, description="cpu, sm70 to sm90, or a JSON file: op name to formats")
    headroom: float = Field(2.0, ge=1, description="range left free above the magnitudes that calibration saw")
    inputs: list[str] = Field([], description="files with input tensors, instead of texts")
    heldout_inputs: list[str] = Field([], description="files with inputs to measure on; else the later half of inputs")
    input_shape: str | None = Field(None, description="shape of random inputs, for example 1x3x224x224")
    outputs: list[str] = Field([], description="outputs that count, for example logits; none names them all")
    calibration: int = Field(4, ge=1, description="inputs a plan is made on")
    heldout: int = Field(4, ge=1, description="further inputs its error is measured on")
    survey: int = Field(12, ge=0, description="further calibration inputs that unseen ones are judged by")
    length: int = Field(32, ge=1, description="tokens per text")
    batch: int = Field(1, ge=1, description="texts per input")
    probes: int = Field(16, ge=1, description="random adjoints per input")
    rounds: int = Field(3, ge=1, description="rounds of planning and measuring at most")
    time_limit: float = Field(60.0, gt=0, description="seconds per solve at most, a last resort")
    pareto: int = Field(9, ge=0, description="points of the trade-off curve")
    baselines: bool = Field(True, description="measure uniform formats, half() and autocast on the same inputs")
    save_model: bool = Field(False, description="write the model with its weights in the plan's formats")
    box: float = Field(
        0.0, ge=0, description="bound the plan's error for all inputs this close to the first; 0: do not"
    )
    refute: bool = Field(False, description="prove, where it can be, that uniform formats cannot keep epsilon")


class CompareConfig(_Section):
    """What `cohom compare` compares, and how."""

    baseline: str | None = Field(None, description="run folder or model that drift is measured from; else the first")
    checkpoints: str | None = Field(None, description="folder of checkpoints, or a hub model whose revisions are named")
    revisions: list[str] = Field([], description="revisions of that hub model, in order of training")
    measure: str = Field("auto", description="auto, a bounded measure such as cka-debiased or nts-e, or diagrams")


class TrainingConfig(_Section):
    """How `cohom train` trains; a step is one update of the weights."""

    architecture: dict[str, Any] | None = Field(
        None, description="a new model instead of --model: model_type and its configuration, e.g. {model_type: gpt2}"
    )
    texts: int = Field(0, ge=0, description="texts to train on; 0: all of the data set")
    eval_split: str | None = Field(None, description="split to evaluate on; else texts kept apart by their hash")
    eval_fraction: float = Field(0.0625, gt=0, lt=1, description="share of texts kept apart where there is no split")
    eval_texts: int = Field(256, ge=1, description="texts of the evaluation at most")
    objective: Literal["auto", "causal", "masked"] = Field("auto", description="auto: what the model's head is for")
    exact_weight: float = Field(0.0, ge=0, description="weight of the exact-sequence loss; 0 is exactly off")
    spectral_weight: float = Field(0.0, ge=0, description="weight of the spectral-sequence loss; 0 is exactly off")
    max_steps: int = Field(1000, ge=1, description="updates of the weights")
    epochs: float | None = Field(None, gt=0, description="passes over the data, instead of max_steps")
    batch_size: int = Field(8, ge=1, description="sequences per process and micro-batch")
    accumulation: int = Field(1, ge=1, description="micro-batches per update")
    block_size: int = Field(128, ge=2, description="tokens per sequence")
    mask_rate: float = Field(0.15, gt=0, lt=1, description="share of tokens a masked model is asked for")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.1, ge=0, description="decay of matrices; biases and norms do not decay")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0: never")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field("cosine", description="after the warm-up")
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up")
    min_lr_ratio: float = Field(0.05, ge=0, le=1, description="last learning rate over the peak")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="autocast of accelerate")
    gradient_checkpointing: bool = Field(False, description="recompute activations instead of keeping them")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of averaged weights, which are then kept; 0: off")
    log_every: int = Field(10, ge=1, description="steps between lines of the log")
    eval_every: int = Field(100, ge=1, description="steps between evaluations")
    save_every: int = Field(100, ge=0, description="steps between checkpoints; 0: only the last")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    patience: int = Field(0, ge=0, description="evaluations without a better loss that end the run; 0: never")
    max_time: float | None = Field(None, gt=0, description="seconds after which the run ends with a checkpoint")
    track_topology: int = Field(0, ge=0, description="steps between measures of the layers' topology; 0: never")
    samples: int = Field(3, ge=0, description="texts a causal model goes on with at the end")
    tensorboard: bool = Field(False, description="also write TensorBoard events (needs the tensorboard package)")


class PruningConfig(_Section):
    """What `cohom prune` removes, and how."""

    method: str = Field("chain", description="chain, admm, sparsegpt, wanda, magnitude or random")
    pattern: str = Field("0.5", description="0.5 of every row, layer:0.5, 2:4, or mlp:0.25 of the MLP's channels")
    shrink: Literal["auto"] | float = Field(
        "auto", description="lambda: how little the Gram's correlations are trusted"
    )
    calibration: str | None = Field(None, description="data set to calibrate on; else the first of datasets")
    calibration_tokens: int = Field(8192, ge=2, description="tokens of calibration text")
    evaluate: list[str] = Field([], description="further data sets to measure on, out of domain")
    evaluation_tokens: int = Field(8192, ge=2, description="tokens of every evaluation")
    block_size: int = Field(128, ge=2, description="tokens per sequence")
    verify: bool = Field(False, description="load the result in a fresh process and compare logits")


class ComputeConfig(_Section):
    """Where and how wide the work runs."""

    device: str = Field("cpu", description="cpu, cuda, cuda:N or mps")
    threads: int = Field(0, ge=0, description="CPU threads; 0 uses the cores this process may use")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of every draw")
    memory: float = Field(0.0, ge=0, description="GiB that the topology may use; 0: what is free")
    backend: Literal["auto", "threading", "loky", "dask", "ray"] = Field(
        "auto", description="where layers are analysed: auto chooses on this machine; dask and ray are clusters"
    )
    scheduler: str | None = Field(None, description="address of a Dask scheduler, such as tcp://host:8786")
    address: str | None = Field(None, description="address of a Ray cluster; none starts Ray on this machine")


class OutputConfig(_Section):
    """Where results go."""

    dir: str = Field("experiments", description="folder that receives the run folder")
    name: str | None = Field(None, description="name inside the run folder's name, instead of command and model")
    plots: bool = Field(True, description="draw plots")
    html: bool = Field(True, description="write report.html")
    junit: str | None = Field(None, description="file for gates and analyses as JUnit XML")
    sarif: str | None = Field(None, description="file for tripped gates as SARIF 2.1.0")
    markdown: str | None = Field(None, description="file for gates, figures and drift as GitHub-flavoured markdown")
    github_summary: bool = Field(False, description="append that markdown to the file named by GITHUB_STEP_SUMMARY")


class Config(_Section):
    """Everything a command needs to know; `config.yaml` in a run folder is one of these and can be run again."""

    models: list[str] = Field(
        ["tiny-gpt"], min_length=1, description="models: built-in, preset, hub id, folder or file"
    )
    datasets: list[str] = Field(["builtin"], min_length=1, description="builtin, preset, file, folder or hub id")
    data: DataConfig = DataConfig()
    loading: LoadingConfig = LoadingConfig()
    activations: ActivationConfig = ActivationConfig()
    metrics: MetricsConfig = MetricsConfig()
    topology: TopologyConfig = TopologyConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    precision: PrecisionConfig = PrecisionConfig()
    compare: CompareConfig = CompareConfig()
    training: TrainingConfig = TrainingConfig()
    pruning: PruningConfig = PruningConfig()
    compute: ComputeConfig = ComputeConfig()
    output: OutputConfig = OutputConfig()
    fail_on: list[str] = Field([], description="gates: conditions on results.json that end the command with exit 1")

    @field_validator("fail_on")
    @classmethod
    def _readable_gates(cls, gates: list[str]) -> list[str]:
        for gate in gates:
            parse_gate(gate)
        return gates

    @field_validator("models", "datasets")
    @classmethod
    def _no_empty_names(cls, names: list[str]) -> list[str]:
        if any(not name.strip() for name in names):
            raise ValueError("a name is empty")
        return list(dict.fromkeys(name.strip() for name in names))


def resolve(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Build the configuration: defaults < `file` (YAML) < environment < `overrides` (`a.b=c`) < `flags`.

    `flags` maps dotted keys to values; None means the flag was not given. In the environment, `COHOM_DATA__SAMPLES`
    is `data.samples`.

    Raises:
        InputRefused: the file cannot be read.
        UsageError: unknown key, wrong type or value; the message names the key and where it came from.
    """
    tree: dict[str, Any] = read_yaml(file) if file else {}
    for key, value in _environment(os.environ if environ is None else environ).items():
        _assign(tree, key, value)
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {item!r} is not of the form key=value", "write for example --set data.samples=500")
        _assign(tree, key.strip(), _scalar(value, f"--set {key.strip()}"))
    for key, value in (flags or {}).items():
        if value is not None:
            _assign(tree, key, value)
    return _validate(tree)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file (safe loader; an empty file is an empty mapping)."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputRefused(f"cannot read config {str(file)!r}: {error.strerror}", "check the path") from error
    except UnicodeDecodeError as error:
        raise InputRefused(f"config {str(file)!r} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise UsageError(f"config {str(file)!r}: {problem}{where}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UsageError(f"config {str(file)!r} must be a mapping of sections", "`cohom init` writes an example")
    return tree


def dump_yaml(config: Config) -> str:
    """The configuration as YAML that `resolve` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def commented_yaml(config: Config) -> str:
    """The same, every key with its description as a comment: what `cohom init` writes."""
    lines = ["# Configuration of cohom. Every key is optional; flags, --set and COHOM_SECTION__KEY win over it."]
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if isinstance(value, _Section):
            lines += ["", f"{name}:  # {(type(value).__doc__ or '').rstrip('.')}"]
            lines += [
                f"  {key}: {_flow(getattr(value, key))}  # {sub.description}"
                for key, sub in type(value).model_fields.items()
            ]
        else:
            lines.append(f"{name}: {_flow(value)}  # {field.description}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Dotted keys from `COHOM_SECTION__KEY` variables; `COHOM_MODELS` and `COHOM_DATASETS` are lists by comma."""
    found: dict[str, Any] = {}
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and ("__" in variable or variable in ("COHOM_MODELS", "COHOM_DATASETS")):
            key = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            found[key] = _scalar(environ[variable], variable)
    return found


def _scalar(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text) if text.strip() else text
    except yaml.YAMLError as error:
        raise UsageError(f"{origin}: {text!r} is not a YAML value") from error


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted `key`; a comma-separated string or a single value becomes a list where the schema wants one."""
    *sections, leaf = key.split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            raise UsageError(f"{key!r}: {section!r} is not a section")
        tree = child
    if key in _LISTS and not isinstance(value, list | tuple):
        value = [part.strip() for part in str(value).split(",")]
    tree[leaf] = list(value) if isinstance(value, tuple) else value


def _validate(tree: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(f"unknown config key {key!r}", did_you_mean(key, _known_keys())) from error
        message = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"config key {key!r}: {message} (got {first['input']!r})") from error


def _known_keys() -> list[str]:
    keys: list[str] = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, _Section):
            keys += [f"{name}.{key}" for key in section.model_fields]
        else:
            keys.append(name)
    return keys
