"""`--trust`: let a file run its own code, in a child process with hard limits that hands back only tensors.

The user says that the file may run code. That code then has this user's rights on this machine, less what the limits
take away: it is a seat belt, not a wall. The result records that it happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cohomcli.errors import InputRefused
from cohomcli.models.files.contents import Leaf
from cohomcli.models.files.limits import DEFAULT, Limits
from cohomcli.models.files.modelfile import ModelFile
from cohomcli.models.files.read import read_model_file
from cohomcli.models.files.sniff import FileKind, refuse, sniff_source
from cohomcli.models.files.source import open_source
from cohomcli.models.files.statedict import choose_state_dict

_CHILD = Path(__file__).with_name("trusted_child.py")
_KEPT_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "PYTHONPATH",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
)
_PICKLED: frozenset[FileKind] = frozenset({"torch-zip", "torch-legacy", "pickle", "torch-tar"})
_MAX_ERROR = 8192
_GIB = 2**30


@dataclass(frozen=True)
class TrustLimits:
    """What the child may use: address space beyond four times the file, CPU seconds, wall seconds."""

    memory_bytes: int = 16 * _GIB
    cpu_seconds: int = 600
    wall_seconds: int = 900


def read_trusted(path: Path, at: str = "", limits: Limits = DEFAULT, trust: TrustLimits | None = None) -> ModelFile:
    """Run `torch.load(weights_only=False)` on `path` in a limited child process and take the tensors it hands back.

    Kinds that need no trust (safetensors, TorchScript, torch.export, NumPy) are read inertly as always. `trusted` of
    the result records what ran: the limits, and whether the child was cut off from the network.

    Raises:
        InputRefused: not a model file, the child fails, is killed by a limit, or hands back no tensors.
        UsageError: `at` is not a place that holds tensors.
    """
    with open_source(path) as source:
        found = sniff_source(source, limits)
        if found.kind not in _PICKLED:
            if not found.readable:
                raise refuse(source, found)
            return read_model_file(path, limits, at)
    if os.name != "posix":
        raise InputRefused("--trust needs the resource limits of Linux or macOS", "save the model's state_dict()")
    chosen = trust or TrustLimits()
    with tempfile.TemporaryDirectory(prefix="cohom-trust-") as folder:
        output = Path(folder) / "tensors.safetensors"
        _run_child(path.resolve(), output, found.kind, chosen)
        try:
            handed = read_model_file(output, limits)
        except InputRefused as error:
            raise InputRefused(f"loading {str(path)!r} gave no tensors", "give the file of the weights") from error
        return _with_settings(_assemble(path, found.kind, handed, chosen, (at, limits)), limits)


def _run_child(path: Path, output: Path, kind: FileKind, trust: TrustLimits) -> None:
    size = path.stat().st_size
    caps = {
        "RLIMIT_AS": trust.memory_bytes + 4 * size,
        "RLIMIT_CPU": trust.cpu_seconds,
        "RLIMIT_FSIZE": 4 * size + _GIB,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 256,
    }
    environment = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), str(path), str(output), json.dumps(caps), kind],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment | {"TMPDIR": str(output.parent), "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
        )
        try:
            code = child.wait(trust.wall_seconds)
        except subprocess.TimeoutExpired as error:
            raise InputRefused(f"loading {str(path)!r} took over {trust.wall_seconds} s", "do not trust it") from error
        finally:
            with contextlib.suppress(ProcessLookupError):  # the child and whatever it started
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if code != 0 or not output.is_file():
            raise InputRefused(
                f"{str(path)!r} could not be loaded: {_reason(errors, code)}", "check the file and its code"
            )


def _reason(errors: Any, code: int) -> str:
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - _MAX_ERROR))
    lines = [line for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
    if code < 0:
        return f"the child process was stopped by {signal.Signals(-code).name}"
    text = lines[-1][:200] if lines else f"exit code {code}"
    return "".join(character if character.isprintable() else "?" for character in text)


def _assemble(
    path: Path, kind: FileKind, handed: ModelFile, trust: TrustLimits, options: tuple[str, Limits]
) -> ModelFile:
    """Choose the state dict among what the child found: tensors and names, for nothing else it wrote is believed."""
    at, limits = options
    with open_source(path) as source:
        try:
            root = _restore(json.loads(handed.facts["content"]), handed)
            tree = json.loads(handed.facts["tree"])
            offline = json.loads(handed.facts["offline"]) is True
        except (KeyError, ValueError, RecursionError) as error:
            raise source.corrupt("its code tampered with what was handed back") from error
        choice = choose_state_dict(source, root, limits, at)
    names: dict[int, list[str]] = {}
    tensors = {name: value for name, value in choice.content.tensors.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        names.setdefault(id(value), []).append(name)
    result = replace(handed, path=path, kind=kind, tensors=tensors, facts=choice.facts, place=choice.path)
    return replace(
        result,
        module_tree={str(key): str(value) for key, value in tree.items()} if isinstance(tree, dict) else {},
        tied=tuple(tuple(group) for group in names.values() if len(group) > 1),
        others=choice.others,
        stripped=choice.stripped,
        trusted={"loader": "torch.load(weights_only=False)", "no_network": offline, **asdict(trust)},
        notes=("the file was allowed to run its own code (--trust)",),
    )


def _with_settings(result: ModelFile, limits: Limits) -> ModelFile:
    """Add what only the inert reader keeps, module settings and configuration, when it can read the file too."""
    try:
        known = read_model_file(result.path, limits)
    except InputRefused:
        return result  # the reason to trust the file in the first place
    return replace(result, module_settings=known.module_settings, config=known.config, config_class=known.config_class)


def _restore(value: Any, handed: ModelFile) -> Any:
    """The child's description as nested mappings with the tensors in their places."""
    if isinstance(value, dict) and isinstance(value.get("map"), dict):
        return {str(name): _restore(item, handed) for name, item in value["map"].items()}
    if isinstance(value, dict):
        found: Leaf = handed.tensors[str(value["tensor"])]
        return found
    return value
