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
    "precision.formats",
    "precision.keep",
    "precision.inputs",
    "precision.heldout_inputs",
    "precision.outputs",
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
    cache: bool = Field(True, description="reuse activations of an equal model, texts and options")


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
    compat: Literal["todacomm"] | None = Field(None, description="also report the figures as todacomm defines them")


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
    survey: int = Field(12, ge=0, description="further calibration texts that only show which magnitudes occur")
    length: int = Field(32, ge=1, description="tokens per text")
    batch: int = Field(1, ge=1, description="texts per input")
    probes: int = Field(16, ge=1, description="random adjoints per input")
    rounds: int = Field(3, ge=1, description="rounds of planning and measuring at most")
    time_limit: float = Field(15.0, gt=0, description="seconds per solve at most")
    pareto: int = Field(9, ge=0, description="points of the trade-off curve")
    baselines: bool = Field(True, description="measure uniform formats, half() and autocast on the same inputs")
    save_model: bool = Field(False, description="write the model with its weights in the plan's formats")


class ComputeConfig(_Section):
    """Where and how wide the work runs."""

    device: str = Field("cpu", description="cpu, cuda, cuda:N or mps")
    threads: int = Field(0, ge=0, description="CPU threads; 0 uses the cores this process may use")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of every draw")


class OutputConfig(_Section):
    """Where results go."""

    dir: str = Field("experiments", description="folder that receives the run folder")
    name: str | None = Field(None, description="name inside the run folder's name, instead of command and model")
    plots: bool = Field(True, description="draw plots")
    html: bool = Field(True, description="write report.html")


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
    precision: PrecisionConfig = PrecisionConfig()
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
