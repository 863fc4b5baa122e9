"""The user's own architecture: `--model-code file.py:factory` is consent to run exactly that file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.files.assign import fill
from cohomcli.models.wording import first_line
from cohomcli.registry import did_you_mean

_FORM = "the form is --model-code path/to/file.py:factory"


def build_from_code(model_code: str, tensors: Mapping[str, Tensor], label: str) -> nn.Module:
    """Call `factory()` of the named file, without arguments, and load `tensors` into the module it returns.

    Loading is strict and keeps the stored element types. The module is returned in eval mode. What the code prints
    goes to stderr, for stdout is for results.

    Raises:
        UsageError: `model_code` is not `file.py:factory`, or the file or the factory does not exist.
        InputRefused: the code fails or returns no module, or the weights do not fit it.
    """
    file, name = _parse(model_code)
    with redirect_stdout(sys.stderr):
        factory = _factory(_import(file), name, file)
        module = _called(factory, name, file)
    fill(module, tensors, label)
    return module.eval()


def _called(factory: Any, name: str, file: Path) -> nn.Module:
    try:
        module = factory()
    except (Exception, SystemExit) as error:
        raise InputRefused(
            f"{name}() of {str(file)!r} failed: {type(error).__name__}: {first_line(error)}", "fix the model's code"
        ) from error
    if not isinstance(module, nn.Module):
        raise InputRefused(f"{name}() of {str(file)!r} returned {type(module).__name__}", "return a torch.nn.Module")
    return module


def _parse(model_code: str) -> tuple[Path, str]:
    text, colon, name = model_code.rpartition(":")
    file = Path(text).expanduser()
    if not colon or not name.isidentifier() or file.suffix != ".py":
        raise UsageError(f"{model_code!r} names no function in a Python file", _FORM)
    if not file.is_file():
        raise UsageError(f"no such file: {str(file)!r}", _FORM)
    return file.resolve(), name


def _import(file: Path) -> ModuleType:
    """Import the file under a name of its own, its folder first on the path, as if it had been run there."""
    name = f"cohom_model_code_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(file)!r} cannot be imported", _FORM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputRefused(
            f"the model code {str(file)!r} failed: {type(error).__name__}: {first_line(error)}", "fix the model's code"
        ) from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def _factory(module: ModuleType, name: str, file: Path) -> Any:
    factory = getattr(module, name, None)
    if callable(factory):
        return factory
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise UsageError(f"{str(file)!r} has no function {name!r}", did_you_mean(name, known))
