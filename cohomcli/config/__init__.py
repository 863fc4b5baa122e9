"""The configuration of a command: one validated tree, filled from defaults, YAML, environment, `--set` and flags."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from cohomcli.config.ablation import AblationConfig
from cohomcli.config.analysis import (
    ActivationConfig,
    CompareConfig,
    DataConfig,
    EvidenceConfig,
    LoadingConfig,
    MetricsConfig,
    TopologyConfig,
)
from cohomcli.config.circuits import CircuitsConfig
from cohomcli.config.grids import GenerationConfig, GridConfig
from cohomcli.config.precision import PrecisionConfig
from cohomcli.config.pruning import PruningConfig
from cohomcli.config.running import ComputeConfig, OutputConfig
from cohomcli.config.section import Section
from cohomcli.config.training import TrainingConfig
from cohomcli.errors import InputRefused, UsageError
from cohomcli.gates import parse_gate
from cohomcli.registry import did_you_mean

ENV_PREFIX = "COHOM_"
_SAFE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Keys that take a list, which a flag, --set or the environment may give as text with commas.
_LISTS = (
    "models",
    "datasets",
    "ablation.arms",
    "ablation.weights",
    "activations.layers",
    "activations.sites",
    "compare.population",
    "compare.revisions",
    "generation.labels",
    "precision.export",
    "precision.formats",
    "precision.keep",
    "precision.inputs",
    "precision.heldout_inputs",
    "precision.outputs",
    "pruning.evaluate",
    "topology.similarity",
)


class Config(Section):
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
    ablation: AblationConfig = AblationConfig()
    grids: GridConfig = GridConfig()
    generation: GenerationConfig = GenerationConfig()
    pruning: PruningConfig = PruningConfig()
    circuits: CircuitsConfig = CircuitsConfig()
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
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_SAFE)  # a safe loader, in C where there is one
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
        if isinstance(value, Section):
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
        if isinstance(section, type) and issubclass(section, Section):
            keys += [f"{name}.{key}" for key in section.model_fields]
        else:
            keys.append(name)
    return keys
