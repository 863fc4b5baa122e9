"""Build a transformers model from a checked folder: the class its checkpoint was saved from, with no random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cohomcli.errors import InputRefused
from cohomcli.models.folder import ModelFolder
from cohomcli.models.own import own_class, register_own
from cohomcli.models.quiet import quiet as quiet
from cohomcli.models.spec import ModelKind
from cohomcli.models.wording import first_line, some

if TYPE_CHECKING:
    from torch import Tensor

Head = Literal["causal", "masked"] | None

_MAX_COUNT = 1000  # layers, experts: a configuration that claims more is no model, and building it would take hours
_COUNTS = ("layers", "layer", "groups", "group_num", "experts")
# Checkpoint keys without a place in the model that change nothing: buffers older versions stored, and heads for other
# tasks than the one loaded.
_HARMLESS_UNEXPECTED = (
    "position_ids", "token_type_ids", "inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", "masked_bias",
    "pooler.", "cls.seq_relationship.", "decoder.embed_tokens.weight", "encoder.embed_tokens.weight",
)  # fmt: skip
_POOLER = "pooler."


@dataclass(frozen=True)
class Built:
    """A model with its trained head's kind; `claims_causal` is what its class says about its direction."""

    model: Any
    head: Head
    claims_causal: bool


def read_transformers_config(folder: ModelFolder, trust_remote_code: bool) -> Any:
    """The folder's configuration as transformers' object, without letting the file choose kernels or run code.

    Raises:
        InputRefused: an architecture transformers does not know, code without permission, or impossible values.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = dict(folder.config)
    register_own(settings.get("model_type"))
    _check_code(folder, settings, trust_remote_code)
    _check_counts(folder, settings)
    try:
        with quiet():
            if needs_code(settings):
                config = AutoConfig.from_pretrained(str(folder.path), trust_remote_code=True, local_files_only=True)
            else:
                settings.pop("auto_map", None)
                config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
            n_layer = config.get_text_config().num_hidden_layers
    except Exception as error:  # configuration classes validate in their own ways
        raise InputRefused(
            f"the configuration of {str(folder.path)!r} is not valid: {first_line(error)}",
            "restore the original config.json",
        ) from error
    if not isinstance(n_layer, int) or n_layer < 1:
        raise InputRefused(f"{str(folder.path)!r} claims {n_layer!r} layers", "restore the original config.json")
    config._attn_implementation = None  # transformers' own choice: fused where the architecture allows it
    return config


def needs_code(settings: dict[str, Any]) -> bool:
    """Whether only the Python files beside the weights can build this model: transformers does not know its type."""
    return bool(settings.get("auto_map")) and not _is_native(settings)


def claims_causal(config: Any) -> bool:
    """Whether the class the checkpoint names, or its family, reads left to right."""
    _, head = choose_class(config)
    return head == "causal" or (head is None and _is_causal_family(config))


def choose_class(config: Any) -> tuple[Any, Head]:
    """The class to load and the head it brings: the one the checkpoint names, or its family's bare model.

    A class with another task's head (classification, question answering) is replaced by the bare model.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    if own := own_class(config):
        return own
    listed = getattr(config, "architectures", None)
    named = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""
    if named in _values(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) and config.is_encoder_decoder:
        return getattr(transformers, named), None
    if named in _values(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return getattr(transformers, named), "causal"
    if named in _values(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        return getattr(transformers, named), "masked"
    if named in _values(auto.MODEL_MAPPING_NAMES) or named in _values(auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES):
        return getattr(transformers, named), None
    return transformers.AutoModel, None


def usable_head(head: Head, kind: ModelKind, named: str) -> Head:
    """A causal head on a stack that sees later tokens would only copy them; some such classes are masked models."""
    from transformers.models.auto import modeling_auto as auto

    if head == "causal" and kind == "encoder":
        return "masked" if named in _values(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES) else None
    return head


def skeleton(config: Any) -> Any:
    """The model the checkpoint names, on the meta device: structure and sizes without storage.

    Raises:
        InputRefused: the configuration's values fit no model.
    """
    import torch

    with torch.device("meta"):
        return _from_config(config)


def skeleton_with_buffers(config: Any) -> Any:
    """The same in float32 with its buffers computed, which files do not hold; only parameters are without storage.

    Raises:
        InputRefused: the configuration's values fit no model.
    """
    import torch
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = _from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model


def _from_config(config: Any, **options: Any) -> Any:
    wanted, _ = choose_class(config)
    build_it = wanted.from_config if hasattr(wanted, "from_config") else wanted._from_config
    try:
        with quiet():
            return build_it(config, **options)
    except Exception as error:  # every architecture trips over impossible values in its own way
        raise InputRefused(
            f"no {config.model_type} model can be built from its config.json: {first_line(error)}",
            "restore the original config.json",
        ) from error


def build(folder: ModelFolder, config: Any) -> Built:
    """Load the weights in float32 and account for every key.

    A head that is missing from the checkpoint is dropped with its class: no random weight stays in the model.

    Raises:
        InputRefused: missing, mismatched or unexpected weights, or a file that cannot be read.
    """
    if needs_code(folder.config):
        return _build_from_code(folder, config)
    wanted, head = choose_class(config)
    model, report = _from_pretrained(folder, config, wanted)
    if head is not None and _only_head_missing(model, report):
        from transformers import AutoModel

        head = None
        model, report = _from_pretrained(folder, config, AutoModel)
    account_for(folder, model, report)
    return Built(model, head, claims_causal(config))


def _build_from_code(folder: ModelFolder, config: Any) -> Built:
    import transformers

    targets = folder.config["auto_map"]
    heads: dict[str, Head] = {"AutoModelForCausalLM": "causal", "AutoModelForMaskedLM": "masked", "AutoModel": None}
    for name, head in heads.items():
        if name in targets:
            auto = getattr(transformers, name)
            model, report = _from_pretrained(folder, config, auto, trust_remote_code=True)
            account_for(folder, model, report)
            return Built(model, head, head == "causal")
    raise InputRefused(f"the code of {str(folder.path)!r} defines no language model", "it needs an AutoModel entry")


def _from_pretrained(
    folder: ModelFolder, config: Any, auto: Any, trust_remote_code: bool = False
) -> tuple[Any, dict[str, Any]]:
    if not folder.is_safetensors:
        wanted = _concrete(auto, config, trust_remote_code)
        return from_tensors(wanted, config, folder.read_tensors(), str(folder.path))
    if len(folder.weights) == 1:
        config.transformers_weights = folder.weights[0].name  # the file that was checked, whatever its name
    try:
        with quiet():
            model, report = auto.from_pretrained(
                str(folder.path),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                **_how(config),
            )
    except MemoryError:
        raise
    except Exception as error:  # corrupt files fail anywhere between header and tensor
        raise not_loadable(str(folder.path), error) from error
    return model, report


def from_tensors(wanted: Any, config: Any, tensors: Mapping[str, Tensor], label: str) -> tuple[Any, dict[str, Any]]:
    """A model of the class `wanted` with `tensors`, in float32, and transformers' account of the names; no file is
    read. Names of older versions are converted.

    Raises:
        InputRefused: transformers cannot load them; `label` says what.
    """
    try:
        with quiet():
            model, report = wanted.from_pretrained(None, state_dict=dict(tensors), **_how(config))
    except MemoryError:
        raise
    except Exception as error:  # transformers fails in many ways on weights of another model
        raise not_loadable(label, error) from error
    return model, report


def _how(config: Any) -> dict[str, Any]:
    """The arguments of every `from_pretrained`."""
    import torch
    from transformers import GenerationConfig

    return {
        "config": config,
        "dtype": torch.float32,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # so that they are reported by name and refused afterwards
        "generation_config": GenerationConfig(),
    }


def not_loadable(label: str, error: Exception) -> InputRefused:
    """The refusal of weights that a library could not read."""
    return InputRefused(
        f"the weights of {label!r} cannot be loaded: {first_line(error)}", "download or save the model again"
    )


def _concrete(auto: Any, config: Any, trust_remote_code: bool) -> Any:
    """The class an AutoModel would choose, learnt by building it without storage; other classes are returned."""
    import torch

    if not hasattr(auto, "from_config"):
        return auto
    options = {"trust_remote_code": True} if trust_remote_code else {}
    with quiet(), torch.device("meta"):
        return type(auto.from_config(config, **options))


def account_for(folder: ModelFolder, model: Any, report: dict[str, Any]) -> None:
    """Refuse a checkpoint that does not match its model; a missing pooler is removed, for nothing here uses it.

    `report` has lists of missing_keys, unexpected_keys and mismatched_keys (name first), as transformers gives them.

    Raises:
        InputRefused: keys are missing, left over or of another shape.
    """
    missing = sorted(report["missing_keys"])
    if missing and all(_POOLER in key for key in missing):
        backbone = getattr(model, getattr(model, "base_model_prefix", "") or "", model)
        backbone.pooler = None
        missing = []
    problems = {
        "missing": missing,
        "of another shape": sorted(key[0] for key in report["mismatched_keys"]),
        "unexpected": _harmful(folder, model, sorted(report["unexpected_keys"])),
    }
    found = [f"{len(keys)} {word} ({some(keys)})" for word, keys in problems.items() if keys]
    if found:
        raise InputRefused(
            f"weights and configuration of {str(folder.path)!r} do not match: {'; '.join(found)}",
            "the folder mixes two models or a download is incomplete",
        )


def _harmful(folder: ModelFolder, model: Any, unexpected: list[str]) -> list[str]:
    """Unexpected keys that are neither known leftovers nor, when the bare model was loaded, some head."""
    keys = [key for key in unexpected if not any(harmless in key for harmless in _HARMLESS_UNEXPECTED)]
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    if hasattr(model, prefix[:-1]):
        return keys  # the model has its head: anything left over belongs to another model
    stored = folder.tensors() or dict.fromkeys(unexpected)
    if any(key.startswith(prefix) for key in stored):
        return [key for key in keys if key.startswith(prefix)]
    return [key for key in keys if not key.startswith("lm_head.")]


def _only_head_missing(model: Any, report: dict[str, Any]) -> bool:
    prefix = f"{model.base_model_prefix}."
    missing = report["missing_keys"]
    return bool(missing) and not report["mismatched_keys"] and not any(key.startswith(prefix) for key in missing)


def _check_code(folder: ModelFolder, settings: dict[str, Any], trust_remote_code: bool) -> None:
    path = str(folder.path)
    if needs_code(settings):
        if not trust_remote_code:
            raise InputRefused(
                f"{path!r} comes with its own Python code",
                "read that code, then allow it with --trust-remote-code",
            )
        if "--" in str(settings["auto_map"]):
            raise InputRefused(f"{path!r} takes its code from another repository", "load that repository itself")
    elif not _is_native(settings):
        raise InputRefused(
            f"{path!r} has the unknown architecture {str(settings.get('model_type'))!r}",
            "update transformers, or check config.json",
        )


def _check_counts(folder: ModelFolder, settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, dict):
            _check_counts(folder, value)
        elif isinstance(value, int) and value > _MAX_COUNT and key.endswith(_COUNTS):
            raise InputRefused(f"{str(folder.path)!r} claims {key!r} = {value}", "restore the original config.json")


def _is_native(settings: dict[str, Any]) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = settings.get("model_type")
    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def _is_causal_family(config: Any) -> bool:
    """Whether a bare model's family reads left to right: it has a causal head and no masked one, or says so."""
    from transformers.models.auto import modeling_auto as auto

    family = config.get_text_config().model_type
    causal = family in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = family in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return (causal and not masked) or bool(getattr(config, "is_decoder", False))


def _values(mapping: Any) -> set[str]:
    names: set[str] = set()
    for value in mapping.values():
        names.update(value if isinstance(value, (tuple, list)) else (value,))
    return names
