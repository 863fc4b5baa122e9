"""What does `--model` mean? A built-in, a preset, a local file or folder, or a hub id. Nothing is loaded to decide."""

from __future__ import annotations

import re
from pathlib import Path

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.presets import PRESETS
from cohomcli.models.spec import ModelSource
from cohomcli.registry import did_you_mean

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
_MODEL_SUFFIXES = (".safetensors", ".gguf", ".json", ".pt", ".pth", ".pt2", ".bin", ".ckpt", ".pkl", ".h5", ".onnx")
_DULL_FOLDERS = {"model", "models", "checkpoint", "weights", "snapshots", "output", "main"}
_SAVE_HINT = "save it with `save_pretrained` and give the folder"


def resolve(reference: str) -> ModelSource:
    """Resolve a `--model` value.

    Built-in and preset names win over a folder of the same name (write `./name` for the folder); anything that exists
    on disk or looks like a path is local; the rest must be a hub id, `org/name` or `name`. Nothing is downloaded.

    Raises:
        UsageError: the value is empty, or is neither a path nor a possible hub id.
        InputRefused: it looks like a path but is missing, has no `config.json`, or holds an unsupported kind of file.
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
    return ModelSource(safe_name(text.rpartition("/")[2]), "hub", text)


def known_names() -> list[str]:
    """Every name `--model` knows by itself: the built-in models, then the presets."""
    from cohomcli.assets import BUILTIN_MODELS

    return [*BUILTIN_MODELS, *PRESETS]


def safe_name(text: str) -> str:
    """`text` reduced to letters, digits and `._-`: fit for file names, terminals, Markdown and HTML."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:80] or "model"


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
        return ModelSource(safe_name(Path(ggufs[0]).stem), "gguf", str(folder), gguf_file=ggufs[0])
    if ggufs:
        raise InputRefused(
            f"{str(folder)!r} holds {len(ggufs)} GGUF files", f"name one of them: {', '.join(ggufs[:5])}"
        )
    raise InputRefused(
        f"{str(folder)!r} has no config.json, so it is not a model folder",
        "give a folder written by `save_pretrained`, or a .gguf file",
    )


def _resolve_file(file: Path) -> ModelSource:
    """Tell the kinds of model file apart by their first bytes: a suffix proves nothing."""
    if file.name in ("config.json", "model.safetensors.index.json"):
        return _resolve_folder(file.parent)
    try:
        with file.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise InputRefused(f"cannot read {str(file)!r}: {error.strerror}", "check its permissions") from error
    if head[:4] == b"GGUF":
        return ModelSource(safe_name(file.stem), "gguf", str(file.parent), gguf_file=file.name)
    if head[8:9] == b"{":  # safetensors: eight bytes of header length, then the JSON header
        if not (file.parent / "config.json").is_file():
            raise InputRefused(f"{str(file)!r} has no config.json beside it", "put the model's config.json there")
        return ModelSource(_folder_name(file.parent), "folder", str(file.parent), weights_file=file.name)
    raise InputRefused(f"{str(file)!r} is neither a safetensors nor a GGUF file", _SAVE_HINT)


def _folder_name(folder: Path) -> str:
    """The folder's own name, with its parent's in front when it alone says nothing (`model`, a commit hash)."""
    parts = folder.resolve().parts
    if len(parts) > 2 and "snapshots" in parts[-2:-1]:  # the hub's cache: models--org--name/snapshots/<commit>
        return safe_name(parts[-3].rpartition("--")[2])
    name = parts[-1] if parts else "model"
    if name.lower() in _DULL_FOLDERS and len(parts) > 2:
        return safe_name(f"{parts[-2]}-{name}")
    return safe_name(name)
