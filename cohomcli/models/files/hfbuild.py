"""A transformers model from a configuration and tensors in memory: every weight accounted for, none left random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.files.assign import best_prefix, strip
from cohomcli.models.folder import ModelFolder, read_json, without_dropped_settings
from cohomcli.models.memory import FLOAT, refuse_if_too_big
from cohomcli.models.pretrained import choose_class, from_tensors, read_transformers_config
from cohomcli.models.quiet import quiet
from cohomcli.models.wording import first_line, some

_POOLER = "pooler."
_FREE_ELEMENTS = 1_000_000  # what a model may have beyond its file: a pooler, an untied head
# Buffers that older versions stored and the model computes now: left out unless this model has them.
_COMPUTED = ("position_ids", "token_type_ids", ".attn.bias", ".attn.masked_bias", ".attention.bias", "masked_bias",
             "inv_freq")  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Tensors on their way into a model; `path` is the file they are from, for errors.

    `stored` are the names they have in the file, when they were renamed.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    stored: frozenset[str] = frozenset()


def read_config_json(file: Path) -> dict[str, Any]:
    """A `config.json` the user names, without the settings by which it could make a library fetch or run something.

    Raises:
        InputRefused: missing, not JSON, or not an object with a `model_type`.
    """
    config = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputRefused(f"{str(file)!r} is no model configuration", "give a config.json that has a model_type")
    return without_dropped_settings(config, repr(str(file)))


def model_type_of(config_class: str) -> str:
    """The `model_type` of a configuration class named in a pickle ("...GPT2Config" -> "gpt2"), "" when unknown."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    wanted = config_class.rpartition(".")[2]
    names = sorted(model_type for model_type, name in CONFIG_MAPPING_NAMES.items() if name == wanted)
    return names[0] if names and config_class.startswith("transformers.") else ""


def build_transformers(weights: Weights, config: Mapping[str, Any]) -> nn.Module:
    """The model `config` describes, with `weights` in float32, in eval mode.

    Its class is what `architectures` names; where that is missing, the bare model or one with a language-modelling
    head, whichever has the names of the weights. A wrapper prefix on all names is taken off; names of older versions
    are converted by transformers.

    Raises:
        InputRefused: an unknown or invalid configuration, or weights that do not fit it.
        AnalysisIncomplete: it does not fit into memory.
    """
    folder = ModelFolder(weights.path, dict(config), (), True)
    resolved = read_transformers_config(folder, trust_remote_code=False)
    skeleton = _skeleton_for(resolved, weights)
    _refuse_claims(weights, skeleton)
    known = _known_names(skeleton)
    tensors = strip(weights.tensors, best_prefix(weights.tensors, known))
    tensors = {name: value for name, value in tensors.items() if name in known or not name.endswith(_COMPUTED)}
    model, report = from_tensors(type(skeleton), resolved, tensors, str(weights.path))
    _account_for(weights.path, model, report)
    finished: nn.Module = model.eval()
    return finished


def _skeleton_for(config: Any, weights: Weights) -> Any:
    """The model without storage, of the class that is named or fits."""
    listed = getattr(config, "architectures", None)
    if isinstance(listed, list) and listed and isinstance(listed[0], str):
        return _skeleton(config, _model_class(config, listed[0]))
    made = [_skeleton(config, wanted) for wanted in _plain_classes(config)]
    best = min(made, key=lambda model: _misfit(model, weights))
    config.architectures = [type(best).__name__]
    return best


def _plain_classes(config: Any) -> list[Any]:
    """The bare model of a configuration, then those with a language-modelling head."""
    import transformers

    heads = [transformers.AutoModelForMaskedLM, transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM]
    return [transformers.AutoModel, *(auto for auto in heads if type(config) in auto._model_mapping)]


def _misfit(model: Any, weights: Weights) -> tuple[int, bool]:
    """How many names are left over or missing; of two that fit, weights under a backbone's name are of the larger."""
    known, wanted = _known_names(model), set(model.state_dict())
    names = strip(weights.tensors, best_prefix(weights.tensors, known))
    given = {name for name in names if not name.endswith(_COMPUTED)}
    base = f"{model.base_model_prefix}."
    free = {name for name in wanted if _POOLER in name} | set(model.all_tied_weights_keys)
    missing = {name for name in wanted - free if name not in given and name.removeprefix(base) not in given}
    is_wrapped = any(f".{base}" in f".{name}" for name in weights.stored or weights.tensors)
    return len(given - known) + len(missing), is_wrapped and model.base_model is model


def _model_class(config: Any, named: str) -> Any:
    """The class `named` when it is a language model, classifier or bare model, else the usual one."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    classifiers = (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    )
    if any(named in mapping.values() for mapping in classifiers):
        return getattr(transformers, named)
    return choose_class(config)[0]


def _skeleton(config: Any, wanted: Any) -> Any:
    """A model of the class `wanted` without storage: its class and its names."""
    try:
        with quiet(), torch.device("meta"):
            return wanted.from_config(config) if hasattr(wanted, "from_config") else wanted._from_config(config)
    except Exception as error:  # configurations can be impossible in ways only the model's code finds
        raise InputRefused(f"no model can be built from this configuration: {first_line(error)}", "check it") from error


def _refuse_claims(weights: Weights, skeleton: Any) -> None:
    """A configuration may not describe far more than the file holds: transformers would allocate what is missing."""
    claimed = sum(value.numel() for value in skeleton.parameters())
    held = sum(value.numel() for value in weights.tensors.values())
    if claimed > 2 * held + _FREE_ELEMENTS:
        raise InputRefused(
            f"the configuration describes {claimed:,} weights and {str(weights.path)!r} holds {held:,}",
            "give the model's own config.json with --config-json",
        )
    refuse_if_too_big(weights.path.name, FLOAT * claimed)


def _known_names(skeleton: Any) -> set[str]:
    """The names of the model's tensors, with and without the name of its backbone in front."""
    names = set(skeleton.state_dict())
    base = f"{getattr(skeleton, 'base_model_prefix', '')}."
    return names | {name.removeprefix(base) for name in names}


def _account_for(path: Path, model: Any, report: dict[str, Any]) -> None:
    """Refuse what does not match; a bare model's missing pooler is removed with its random weights."""
    missing = sorted(report["missing_keys"])
    if missing and all(_POOLER in key for key in missing) and model.base_model is model:
        model.pooler = None
        missing = []
    problems = {
        "missing": missing,
        "of another shape": sorted(str(key[0]) for key in report["mismatched_keys"]),
        "left over": sorted(report["unexpected_keys"]),
    }
    found = [f"{len(keys)} {word} ({some(keys)})" for word, keys in problems.items() if keys]
    if found:
        raise InputRefused(
            f"the weights of {str(path)!r} do not fit the configuration: {'; '.join(found)}",
            "give the model's own config.json with --config-json",
        )
