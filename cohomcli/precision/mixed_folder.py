"""A transformers model with planned weights (`precision.mixed`) as a folder: saved, checked and loaded again.

The folder has Hugging Face's layout: config.json, tokenizer files, model.safetensors with each tensor under its own
name and in its own dtype, the `<name>_scale` (float32) of every int8 or fp8 tensor beside it, plan.json
(`precision.planfile`) and mixed.json with the SHA-256 of the three. Plans of fp32, bf16 and fp16 can be read by
transformers too, with dtype=float32: its from_pretrained makes all weights one dtype. With scaled tensors config.json
names the quantisation method "cohom", which other readers do not know.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.files.read import read_model_file
from cohomcli.models.folder import ModelFolder, read_config, read_json
from cohomcli.models.load import load_any, local_folder
from cohomcli.models.own import own_class_named
from cohomcli.models.pretrained import read_transformers_config
from cohomcli.models.quiet import quiet
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadedWeights, LoadOptions
from cohomcli.models.wording import first_line, some
from cohomcli.precision.formats import get_format
from cohomcli.precision.held import HeldTensor
from cohomcli.precision.mixed import all_tensors, hold_all, install, names_of
from cohomcli.precision.planfile import PlanFile, PlannedWeight, dump_plan, read_plan
from cohomcli.precision.staging import staged_folder

WEIGHTS, PLAN, CONFIG, MANIFEST = "model.safetensors", "plan.json", "config.json", "mixed.json"
SCHEMA = "cohom.mixed/1"
SCALE = "_scale"
_TOKENIZER_FILES = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "*.tiktoken", "*.jinja",
)  # fmt: skip
_SAVE_AGAIN = "save the model again with cohom"
Attention = Literal["eager", "sdpa"]


# --- saving -----------------------------------------------------------------------------------------------------------


def save_mixed(model: nn.Module | Path | str, planned: PlanFile, out: Path, tokenizer: Any = None) -> Path:
    """Write a transformers model as the folder described above; `out` must not exist, or be an empty folder.

    `model` is a float32 module, or what `--model` takes: then the tokenizer's files come from its folder. The new
    folder appears under its name when it is complete.

    Raises:
        UsageError: the model is not transformers', the plan is another model's, or `out` cannot be written.
        InputRefused: `model` names no model that can be loaded.
        AnalysisIncomplete: the disk is full.
    """
    module, source = (model, None) if isinstance(model, nn.Module) else _opened(str(model))
    if not hasattr(module, "config") or not hasattr(module, "save_pretrained"):
        raise UsageError(f"{type(module).__name__} is no transformers model", "use its plan.json with apply")
    planned = _under_first_names(module, planned)
    held = hold_all(module, planned)
    with staged_folder(out) as folder:
        _write_config(module, planned, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        elif source is not None:
            _copy_tokenizer(source, folder)
        _save_tensors(_file_tensors(module, held), folder / WEIGHTS)
        (folder / PLAN).write_text(dump_plan(planned), encoding="utf-8")
        sums = {name: _sha256(folder / name) for name in (CONFIG, PLAN, WEIGHTS)}
        manifest = {"schema": SCHEMA, "sha256": sums}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return out


def _opened(reference: str) -> tuple[nn.Module, Path | None]:
    """The model and its folder, None for a single file."""
    source, options = resolve(reference), LoadOptions()
    found = load_any(source, options)
    if isinstance(found, LoadedWeights):
        raise InputRefused(f"{found.info.location!r} holds weights of no known model: {found.why}", found.hint)
    folder = local_folder(source, options)
    return found.model, folder if folder.is_dir() and not source.gguf_file else None


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in _TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def _write_config(model: Any, planned: PlanFile, folder: Path) -> None:
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    settings = config.to_dict()
    settings.pop("_name_or_path", None)  # a path of this machine
    if any(_is_scaled(weight) for weight in planned.weights.values()):
        settings["quantization_config"] = {"quant_method": "cohom", "plan": PLAN}
    text = json.dumps(settings, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _is_scaled(weight: PlannedWeight) -> bool:
    return get_format(weight.format).n_bytes == 1


def _under_first_names(model: nn.Module, planned: PlanFile) -> PlanFile:
    """The plan with each weight under the first of its names, as files have it, and the others as `tied`."""
    tensors = all_tensors(model)
    names = names_of(tensors)
    renamed = {}
    for name, weight in planned.weights.items():
        first, *others = names[id(tensors[name])] if name in tensors else [name]
        renamed[first] = replace(weight, tied=tuple(others))
    return replace(planned, weights=renamed)


def _file_tensors(model: nn.Module, held: Mapping[str, HeldTensor]) -> dict[str, torch.Tensor]:
    """The state dict, each tensor under its first name, with held tensors, their scales and non-persistent buffers."""
    found: dict[str, torch.Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for first, *_ in names_of(state).values():
        found[first] = state[first].detach()
    for name, value in held.items():
        found[name] = value.data
        if value.scale is not None:
            if name + SCALE in state:
                raise UsageError(f"the model has a tensor {name + SCALE!r} of its own", "keep that weight unscaled")
            found[name + SCALE] = value.scale
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _save_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, file, metadata={"format": "pt"})


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- loading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """What a checked folder holds: planned tensors, and the others by name."""

    planned: PlanFile
    held: dict[str, HeldTensor]
    others: dict[str, torch.Tensor]


def load_mixed(folder: Path, attention: Attention = "eager") -> nn.Module:
    """The model of a folder that `save_mixed` wrote, every weight in the dtype it was saved in, in eval mode.

    `attention` is transformers' implementation; captures, and so plans, are made of "eager" models.

    Raises:
        InputRefused: files are missing, damaged, changed since they were saved, or contradict each other.
    """
    _check_files(folder)
    stored = _read_folder(folder)
    model: nn.Module = _build(folder, stored, attention)
    install(model, stored.held)
    return model.eval().requires_grad_(False)


def _check_files(folder: Path) -> None:
    manifest = read_json(folder / MANIFEST)
    sums = manifest.get("sha256") if isinstance(manifest, dict) and manifest.get("schema") == SCHEMA else None
    if not isinstance(sums, dict) or set(sums) != {CONFIG, PLAN, WEIGHTS}:
        raise InputRefused(f"{str(folder / MANIFEST)!r} is not {SCHEMA}", _SAVE_AGAIN)
    for name, wanted in sorted(sums.items()):
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise InputRefused(f"cannot read {str(folder / name)!r}: {error.strerror}", _SAVE_AGAIN) from error
        if found != wanted:
            raise InputRefused(f"{str(folder / name)!r} is damaged, or changed since it was saved", _SAVE_AGAIN)


def _read_folder(folder: Path) -> _Stored:
    """The tensors of the file, each planned one in the dtype and with the scale that its format asks for."""
    planned = read_plan(folder / PLAN)
    tensors = dict(read_model_file(folder / WEIGHTS).tensors)
    held: dict[str, HeldTensor] = {}
    for name, weight in planned.weights.items():
        held[name] = _checked(folder, name, weight, tensors.pop(name, None), tensors)
    return _Stored(planned, held, tensors)


def _checked(
    folder: Path, name: str, weight: PlannedWeight, data: torch.Tensor | None, tensors: dict[str, torch.Tensor]
) -> HeldTensor:
    wanted = get_format(weight.format).torch_dtype
    if data is None or data.dtype != wanted:
        found = "missing" if data is None else str(data.dtype)
        raise InputRefused(
            f"{name!r} of {str(folder)!r} is {found}, its plan says {weight.format}", "the folder mixes two models"
        )
    if not _is_scaled(weight):
        return HeldTensor(data)
    scale = tensors.pop(name + SCALE, None)
    shape = (data.shape[weight.axis],) if weight.format == "int8" and data.dim() > weight.axis else ()
    if scale is None or scale.dtype != torch.float32 or tuple(scale.shape) != shape:
        raise InputRefused(f"the scale of {name!r} in {str(folder)!r} is missing or misshapen", _SAVE_AGAIN)
    return HeldTensor(data, scale, weight.axis)


def _build(folder: Path, stored: _Stored, attention: Attention) -> Any:
    """The model in float32, by transformers, from what is read of the held tensors."""
    from transformers import GenerationConfig

    settings = read_config(folder)
    settings.pop("quantization_config", None)
    config = read_transformers_config(ModelFolder(folder, settings, (), True), trust_remote_code=False)
    values = {name: value.read(torch.float32) for name, value in stored.held.items()} | stored.others
    try:
        with quiet():
            model, report = _model_class(folder, settings).from_pretrained(
                None,
                config=config,
                state_dict=values,
                dtype=torch.float32,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are reported by name and refused below
                generation_config=GenerationConfig(),
            )
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise InputRefused(f"no model can be made of {str(folder)!r}: {first_line(error)}", _SAVE_AGAIN) from error
    _account_for(folder, model, report)
    return model


def _model_class(folder: Path, settings: Mapping[str, Any]) -> Any:
    import transformers

    listed = settings.get("architectures")
    name = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""
    found = own_class_named(name) or (getattr(transformers, name, None) if name.isidentifier() else None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise InputRefused(f"{str(folder)!r} is of no transformers model class: {name!r}", _SAVE_AGAIN)
    return found


def _account_for(folder: Path, model: nn.Module, report: Mapping[str, Any]) -> None:
    """Refuse what does not fit; a pooler that the saved model had lost is taken off with its random weights."""
    missing = sorted(report["missing_keys"])
    if missing and all("pooler." in key for key in missing):
        _without_pooler(model)
        missing = []
    buffers = dict(model.named_buffers())
    unexpected = (key for key in report["unexpected_keys"] if key not in buffers)
    problems = {"missing": missing, "left over": sorted(unexpected), "of another shape": _mismatched(report)}
    found = [f"{len(keys)} {word} ({some(keys)})" for word, keys in problems.items() if keys]
    if found:
        raise InputRefused(
            f"the weights of {str(folder)!r} do not fit its config.json: {'; '.join(found)}", _SAVE_AGAIN
        )


def _without_pooler(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(getattr(module, "pooler", None), nn.Module):
            setattr(module, "pooler", None)  # noqa: B010 -- the type of a module's attribute is not None's


def _mismatched(report: Mapping[str, Any]) -> list[str]:
    return sorted(str(key[0]) for key in report["mismatched_keys"])
