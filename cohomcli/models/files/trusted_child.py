"""Run `torch.load` on a file the user trusts, in a process of its own, started by `trusted.py`.

Arguments: the model file, the output file, the limits as JSON, and the file's kind. The output holds tensors and
names only. None of our own modules is imported here: the script runs by its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import resource
import sys
from typing import Any

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_MAX_LEVELS = 6


def main(path: str, output: str, limits: dict[str, int], is_plain: bool) -> None:
    """Confine this process, load `path` (`is_plain`: by pickle alone), write every tensor in it to `output`."""
    offline = confine(limits)
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - classes of a pickled model live beside it
    import torch
    from safetensors.torch import save_file

    if is_plain:
        with open(path, "rb") as stream:  # noqa: PTH123
            loaded = pickle.load(stream)
    else:
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    tensors: dict[Any, Any] = {}
    description = describe(loaded, tensors, 0)
    facts = {
        "content": json.dumps(description),
        "root_class": type_name(loaded),
        "tree": json.dumps(module_tree(loaded)),
        "offline": json.dumps(offline),
    }
    found = {str(index): tensor.detach().contiguous().clone() for index, tensor in tensors.values()}
    save_file(found, output, metadata=facts)


def confine(limits: dict[str, int]) -> bool:
    """Cap memory, time, file size and processes, and leave the network; returns whether the network is really gone."""
    for name, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a lower hard limit is already in force
            resource.setrlimit(getattr(resource, name), (value, value))
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return bool(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)
    except (OSError, AttributeError):  # not Linux
        return False


def describe(value: Any, tensors: dict[Any, Any], level: int) -> Any:
    """Nested names as JSON; a tensor becomes {"tensor": index}; a module its state dict; all else is dropped."""
    import numpy
    import torch

    if isinstance(value, torch.nn.Module):
        return {"map": {name: describe(item, tensors, level + 1) for name, item in value.state_dict().items()}}
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "fiucb":
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    if isinstance(value, torch.Tensor):
        index, _ = tensors.setdefault(same_memory(value), (len(tensors), plain(value)))
        return {"tensor": index}
    if isinstance(value, dict) and level < _MAX_LEVELS:
        pairs = ((name, describe(item, tensors, level + 1)) for name, item in value.items() if isinstance(name, str))
        return {"map": {name: item for name, item in pairs if item is not None}}
    if isinstance(value, (list, tuple)) and level < _MAX_LEVELS:
        return {"map": {str(index): describe(item, tensors, level + 1) for index, item in enumerate(value)}}
    return value if isinstance(value, (bool, int, float, str)) and level <= 2 else None


def plain(tensor: Any) -> Any:
    """A dense tensor of the values of a sparse or quantised one."""
    import torch

    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def same_memory(tensor: Any) -> Any:
    """Equal for tensors that are the same memory seen the same way."""
    import torch

    if tensor.is_quantized or tensor.layout != torch.strided or tensor.device.type == "meta" or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def module_tree(value: Any) -> dict[str, str]:
    """Module path -> class, when the file held a module."""
    import torch

    if not isinstance(value, torch.nn.Module):
        return {}
    return {name: type_name(module) for name, module in value.named_modules()}


def type_name(value: Any) -> str:
    """`module.Class` of a value."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4] == "pickle")
