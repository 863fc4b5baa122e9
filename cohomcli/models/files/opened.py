"""From a model file to a model that runs, by the least trusting way that works, and an account of how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from cohomcli.errors import InputRefused
from cohomcli.models.files.exportedgraph import build_exported
from cohomcli.models.files.family import ANY_HINT, FamilyMatch, infer_family
from cohomcli.models.files.hfbuild import (
    Weights,
    build_transformers,
    model_type_of,
    read_config_json,
)
from cohomcli.models.files.limits import DEFAULT, Limits
from cohomcli.models.files.modelfile import ModelFile
from cohomcli.models.files.nnbuild import build_sequence, is_plain_sequence
from cohomcli.models.files.read import read_model_file
from cohomcli.models.files.trusted import read_trusted
from cohomcli.models.files.usercode import build_from_code
from cohomcli.models.folder import without_dropped_settings

BuiltFrom = Literal["model-code", "config-json", "pickled-config", "torch.nn", "exported-graph", "family", ""]


@dataclass(frozen=True)
class FileOptions:
    """What the user adds to a file: the place of the weights inside it (`at`), a configuration, their own code
    (`file.py:factory`), or permission for the file to run its code (`trust`).

    `layers` asks for a model whose layers have names: an exported graph, which has none, is not built then.
    """

    at: str = ""
    config_json: Path | None = None
    model_code: str = ""
    trust: bool = False
    layers: bool = False


@dataclass(frozen=True)
class OpenedFile:
    """A file and, when it can be built, its model in eval mode.

    `built_from` says by which way, `config` is the transformers configuration that was used, `assumptions` lists every
    setting that neither the file nor the user gave. Without a model, `why` says why and `hint` what the user can add:
    only the weights can be analysed then. `family` is the transformers family as far as the weights give it away.
    """

    file: ModelFile
    model: nn.Module | None = None
    built_from: BuiltFrom = ""
    config: dict[str, Any] | None = None
    assumptions: tuple[str, ...] = ()
    why: str = ""
    hint: str = ""
    family: str = ""


def open_model_file(path: Path, options: FileOptions | None = None, limits: Limits = DEFAULT) -> OpenedFile:
    """Read a file and build its model if that can be done without running anything from the file.

    In this order: the user's code, the user's configuration, the configuration of a pickled Hugging Face model, a
    pickled sequence of `torch.nn` layers, an exported graph, and the family its names and shapes give away.

    Raises:
        InputRefused: the file cannot be read, or does not fit the code or configuration given.
        UsageError: an option names something that does not exist.
        AnalysisIncomplete: the tensors do not fit into memory.
    """
    chosen = options or FileOptions()
    file = read_trusted(path, chosen.at, limits) if chosen.trust else read_model_file(path, limits, chosen.at)
    if chosen.model_code:
        return OpenedFile(file, build_from_code(chosen.model_code, file.tensors, str(path)), "model-code")
    if chosen.config_json is not None:
        return _from_config_json(file, chosen.config_json)
    model_type = model_type_of(file.config_class) if file.config else ""
    if file.config and model_type:
        given = without_dropped_settings(file.config)
        config = {**given, "model_type": model_type, "architectures": [file.root_class.rpartition(".")[2]]}
        return _attempt(file, config, OpenedFile(file, built_from="pickled-config", config=config))
    if is_plain_sequence(file):
        return OpenedFile(file, build_sequence(file), "torch.nn")
    if file.graph is None or chosen.layers:
        return _from_family(file)
    try:
        return OpenedFile(file, build_exported(file), "exported-graph")
    except InputRefused as error:
        built = _from_family(file)
        return built if built.model is not None else replace(built, why=error.message)


def _from_config_json(file: ModelFile, config_json: Path) -> OpenedFile:
    """With the user's configuration; names are converted when the file is of that family, as nanoGPT's to GPT-2's."""
    config = read_config_json(config_json)
    match = infer_family(file.tensors, file.facts)
    family = match.model_type if isinstance(match, FamilyMatch) else match.family
    tensors = match.tensors if family == config["model_type"] else file.tensors
    model = build_transformers(Weights(file.path, tensors, frozenset(file.tensors)), config)
    return OpenedFile(file, model, "config-json", config)


def _from_family(file: ModelFile) -> OpenedFile:
    match = infer_family(file.tensors, file.facts)
    if not isinstance(match, FamilyMatch):
        return OpenedFile(file, why=match.why, hint=match.hint, family=match.family)
    hopeful = OpenedFile(file, None, "family", match.config, match.assumptions, family=match.model_type)
    return _attempt(replace(file, tensors=match.tensors), match.config, hopeful)


def _attempt(weights: ModelFile, config: dict[str, Any], hopeful: OpenedFile) -> OpenedFile:
    """Complete `hopeful` by its model; where the weights turn out not to fit, only they can be analysed."""
    try:
        return replace(hopeful, model=build_transformers(Weights(weights.path, weights.tensors), config))
    except InputRefused as error:
        return OpenedFile(hopeful.file, why=error.message, hint=ANY_HINT, family=hopeful.family)
