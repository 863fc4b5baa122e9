"""Read a local model folder as data: its configuration, its weight files and their headers. No torch, no network.

Everything here comes from strangers. Nothing is executed, no name inside a file leads outside its folder, and settings
by which a configuration could make a library fetch or run something are dropped before any library sees them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohomcli.errors import InputRefused
from cohomcli.models.safetensors_header import TensorEntry, read_header

if TYPE_CHECKING:
    from torch import Tensor

_MAX_JSON_BYTES = 64 * 2**20
# Settings that pick attention or expert kernels (transformers passes these names to its kernel downloader), other
# files to read, or patches to apply. None of them changes what the model computes.
_DROPPED_SETTINGS = frozenset(
    {
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "configuration_files",
        "distributed_config",
        "fusion_config",
        "kernel_config",
        "transformers_weights",
        "use_kernels",
    }
)
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TORCH_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")
_FOREIGN_WEIGHTS = ("*.h5", "*.msgpack", "*.onnx", "*.ot")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "tokenizer*.py",
)


@dataclass(frozen=True)
class ModelFolder:
    """A folder that holds a model: `config` is its configuration without the dropped settings.

    `weights` are the files to load, in order. `is_safetensors`: they are safetensors, which transformers maps into
    memory itself; all others go through the inert reader.
    """

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    is_safetensors: bool

    @property
    def weight_bytes(self) -> int:
        """Bytes on disk of all weight files."""
        return sum(file.stat().st_size for file in self.weights)

    @property
    def has_tokenizer(self) -> bool:
        """Whether any file that can define a tokenizer is present."""
        return has_tokenizer(self.path)

    def tensors(self) -> dict[str, TensorEntry]:
        """Every stored tensor by name, from headers and pickles, without their data.

        Raises:
            InputRefused: a file is corrupt, or shorter than it promises.
        """
        entries: dict[str, TensorEntry] = {}
        for file in self.weights:
            entries.update(read_header(file) if self.is_safetensors else _list_tensors(file))
        return entries

    def read_tensors(self) -> dict[str, Tensor]:
        """Every tensor with its data, read inertly: for files that are not safetensors.

        Raises:
            InputRefused: a file is corrupt or unsafe, or two shards hold tensors of one name.
            AnalysisIncomplete: they do not fit into memory.
        """
        from cohomcli.models.files.read import read_model_file

        found: dict[str, Tensor] = {}
        for file in self.weights:
            fresh = read_model_file(file).tensors
            if twice := sorted(found.keys() & fresh):
                raise InputRefused(f"two shards of {str(self.path)!r} hold {twice[0]!r}", "download the model again")
            found |= fresh
        return found


def has_tokenizer(path: Path) -> bool:
    """Whether any file in the folder `path` can define a tokenizer."""
    return any(True for pattern in _TOKENIZER_FILES for _ in path.glob(pattern))


def _list_tensors(file: Path) -> dict[str, TensorEntry]:
    from cohomcli.models.files.read import list_tensors

    return list_tensors(file)


def read_folder(path: Path, weights_file: str | None = None) -> ModelFolder:
    """Check a model folder and list its weights, preferring safetensors.

    Raises:
        InputRefused: no or unreadable `config.json`, quantised or adapter weights, no weights in a format we read,
            a shard index that points outside the folder or at a missing file, or a corrupt file.
    """
    config = read_config(path)
    _refuse_what_we_do_not_load(path, config)
    weights = _find_weights(path, weights_file)
    # by suffix, because transformers, which then reads the file, goes by nothing else
    folder = ModelFolder(path, config, weights, is_safetensors=weights[0].suffix == ".safetensors")
    folder.tensors()
    return folder


def read_config(path: Path) -> dict[str, Any]:
    """The folder's `config.json` without the dropped settings.

    Raises:
        InputRefused: missing, unreadable, too large, not JSON, or not an object.
    """
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise InputRefused(f"{str(path / 'config.json')!r} is not a JSON object", "restore the model's own config.json")
    return without_dropped_settings(config, repr(str(path / "config.json")))


def read_json(file: Path) -> Any:
    """Parse a JSON file of at most 64 MiB; every failure is one InputRefused line."""
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise InputRefused(f"{str(file)!r} is too large for a JSON settings file", "restore the original file")
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputRefused(f"{str(file)!r} is missing", "give a folder written by `save_pretrained`") from error
    except OSError as error:
        raise InputRefused(f"cannot read {str(file)!r}: {error.strerror}", "check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{str(file)!r} is not valid JSON", "restore the original file") from error


def without_dropped_settings(config: Mapping[str, Any], label: str = "the model configuration") -> dict[str, Any]:
    """A configuration without the settings that pick kernels, other files or patches, at any depth.

    Raises:
        InputRefused: nested too deeply; `label` says what.
    """
    try:
        return {key: _kept(value) for key, value in config.items() if key not in _DROPPED_SETTINGS}
    except RecursionError as error:
        raise InputRefused(f"{label} is nested too deeply", "restore the original file") from error


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _kept(item) for key, item in value.items() if key not in _DROPPED_SETTINGS}
    return [_kept(item) for item in value] if isinstance(value, list) else value


def _refuse_what_we_do_not_load(path: Path, config: dict[str, Any]) -> None:
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise InputRefused(
            f"{str(path)!r} stores quantised weights ({str(method)!r})",
            "use the unquantised model, or a GGUF file of it",
        )
    if (path / "adapter_config.json").exists():
        raise InputRefused(f"{str(path)!r} is an adapter (LoRA)", "merge it into its base model and save the result")


def _find_weights(path: Path, weights_file: str | None) -> tuple[Path, ...]:
    names = (weights_file,) if weights_file else _WEIGHT_FILES
    for name in names:
        file = path / name
        if file.is_file():
            return _shards(file) if file.suffix == ".json" else (file,)
    torch_files = sorted(file for pattern in _TORCH_WEIGHTS for file in path.glob(pattern))
    if torch_files:
        raise InputRefused(f"{str(path)!r} has weights only under other names", f"name the file: {torch_files[0]}")
    foreign = sorted(file.name for pattern in _FOREIGN_WEIGHTS for file in path.glob(pattern))
    if foreign:
        raise InputRefused(
            f"{str(path)!r} has weights only in {foreign[0]!r}", "convert them to safetensors with `save_pretrained`"
        )
    raise InputRefused(f"{str(path)!r} has no weights", "expected model.safetensors or pytorch_model.bin")


def _shards(index: Path) -> tuple[Path, ...]:
    """The files a shard index names; each must be a plain file name of an existing file in the index's folder."""
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(content.get("metadata"), dict):
        raise InputRefused(f"{str(index)!r} is not a shard index", "restore the original file")
    suffix = ".safetensors" if index.name.startswith("model.safetensors") else ".bin"
    files = []
    for name in sorted({str(shard) for shard in weight_map.values()}):
        if Path(name).name != name or "\\" in name or not name.endswith(suffix):
            raise InputRefused(f"{str(index)!r} points outside its folder: {name!r}", "do not trust this model folder")
        if not (index.parent / name).is_file():
            raise InputRefused(f"shard {name!r} of {str(index.parent)!r} is missing", "download the model again")
        files.append(index.parent / name)
    return tuple(files)
