"""What does `--model` mean? A built-in, a preset, a local file or folder, or a hub id. Nothing is loaded to decide."""

from __future__ import annotations

import re
from pathlib import Path

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.files.sniff import FileKind, sniff
from cohomcli.models.folder import read_json
from cohomcli.models.presets import PRESETS
from cohomcli.models.spec import ModelSource
from cohomcli.names import safe_name
from cohomcli.registry import did_you_mean

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
_MODEL_SUFFIXES = (".safetensors", ".gguf", ".json", ".pt", ".pth", ".pt2", ".bin", ".ckpt", ".pkl", ".h5", ".onnx")
_DULL_NAMES = {"model", "models", "pytorch_model", "checkpoint", "weights", "snapshots", "output", "main", "state_dict"}
# Files that stand for the folder they lie in.
_FOLDER_FILES = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")
# Kinds of file that hold weights and no program: beside a config.json they are that model's.
_WEIGHTS: frozenset[FileKind] = frozenset({"safetensors", "torch-zip", "torch-legacy"})


def resolve(reference: str) -> ModelSource:
    """Resolve a `--model` value.

    Built-in and preset names win over a folder of the same name (write `./name` for the folder); anything that exists
    on disk or looks like a path is local; the rest must be a hub id, `org/name` or `name`. Nothing is downloaded.

    A file is told by its bytes. Weights that lie beside a `config.json` with a `model_type` are that folder's model.

    Raises:
        UsageError: the value is empty, or is neither a path nor a possible hub id.
        InputRefused: it looks like a path but is missing, is a folder without `config.json`, or is no model file.
    """
    from cohomcli.assets import BUILTIN_MODELS, model_dir

    text = reference.strip()
    if not text or "\0" in text:
        raise UsageError("no model given", "name a preset (`cohom list-models`), a hub id or a local folder")
    if text in BUILTIN_MODELS:
        return ModelSource(text, "builtin", str(model_dir(text)))
    if text.lower() in PRESETS:
        return ModelSource(text.lower(), "preset", PRESETS[text.lower()].hub_id)
    if _looks_local(text):
        return _resolve_path(Path(text).expanduser())
    if not _HUB_ID.fullmatch(text) or ".." in text or "--" in text:
        raise UsageError(f"{text!r} is neither a file, a folder nor a hub id", did_you_mean(text, known_names()))
    return ModelSource(_name(text.rpartition("/")[2]), "hub", text)


def known_names() -> list[str]:
    """Every name `--model` knows by itself: the built-in models, then the presets."""
    from cohomcli.assets import BUILTIN_MODELS

    return [*BUILTIN_MODELS, *PRESETS]


def _name(text: str) -> str:
    return safe_name(text, "model")


def _looks_local(text: str) -> bool:
    starts_like_a_path = text.startswith(("/", "./", "../", "~")) or text in (".", "..") or "\\" in text
    return starts_like_a_path or text.lower().endswith(_MODEL_SUFFIXES) or Path(text).exists()


def _resolve_path(path: Path) -> ModelSource:
    if not path.exists():
        raise InputRefused(f"no such file or folder: {str(path)!r}", "check the path; a hub id has the form org/name")
    return _resolve_folder(path) if path.is_dir() else _resolve_file(path)


def _resolve_folder(folder: Path) -> ModelSource:
    if (folder / "config.json").is_file():
        return ModelSource(_folder_name(folder), "folder", str(folder))
    ggufs = sorted(file.name for file in folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return ModelSource(_name(Path(ggufs[0]).stem), "gguf", str(folder), gguf_file=ggufs[0])
    if ggufs:
        raise InputRefused(
            f"{str(folder)!r} holds {len(ggufs)} GGUF files", f"name one of them: {', '.join(ggufs[:5])}"
        )
    others = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in _MODEL_SUFFIXES)
    raise InputRefused(
        f"{str(folder)!r} has no config.json, so it is not a model folder",
        f"name one of its files: {', '.join(others[:5])}"
        if others
        else "give a folder written by `save_pretrained`, or a model file",
    )


def _resolve_file(file: Path) -> ModelSource:
    """Tell the kinds of model file apart by their bytes: a suffix proves nothing."""
    if file.name in _FOLDER_FILES:
        return _resolve_folder(file.parent)
    found = sniff(file)
    if found.kind == "gguf":
        return ModelSource(_name(file.stem), "gguf", str(file.parent), gguf_file=file.name)
    if not found.readable:
        raise InputRefused(f"{str(file)!r} {found.why}", found.hint)
    if found.kind in _WEIGHTS and _is_model_folder(file.parent):
        folder = _folder_name(file.parent)
        name = folder if file.stem in ("model", "pytorch_model") else _name(f"{folder}-{file.stem}")
        return ModelSource(name, "folder", str(file.parent), weights_file=file.name)
    return ModelSource(_path_name(file.resolve(), file.stem), "file", str(file))


def _is_model_folder(folder: Path) -> bool:
    """Whether `config.json` there is a transformers one, and not that of a training script."""
    file = folder / "config.json"
    settings = read_json(file) if file.is_file() else None
    return isinstance(settings, dict) and isinstance(settings.get("model_type"), str)


def _folder_name(folder: Path) -> str:
    """The folder's own name; for a commit in the hub's cache (`models--org--name/snapshots/<commit>`) the model's."""
    path = folder.resolve()
    if path.parent.name == "snapshots":
        return _name(path.parts[-3].rpartition("--")[2])
    return _path_name(path, path.name)


def _path_name(path: Path, name: str) -> str:
    """`name`, with that of the folder around `path` in front when it alone says nothing (`model`)."""
    around = path.parent.name
    return _name(f"{around}-{name}" if around and name.lower() in _DULL_NAMES else name)
