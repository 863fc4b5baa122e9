"""Raw bytes into tensors: the only place where the inert reader allocates memory for weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from cohomcli.errors import AnalysisIncomplete
from cohomcli.models.files.limits import Limits
from cohomcli.models.files.objects import ITEM_BYTES, StorageSpec, TensorSpec
from cohomcli.models.files.source import Source, short
from cohomcli.models.memory import available_bytes, gigabytes

TORCH_TYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}


def materialise(source: Source, specs: Mapping[str, TensorSpec], limits: Limits) -> dict[str, Tensor]:
    """Read the storages that `specs` use, once each, and make every tensor a view on its storage.

    Tensors that shared memory when they were saved share it again. All are on the CPU, without gradients.

    Raises:
        InputRefused: a tensor reaches outside its storage or claims far more elements than it holds, a storage is
            not as long as claimed, or its bytes are not of its type.
        AnalysisIncomplete: they do not fit into memory.
    """
    check_claims(source, specs, limits)
    storages = {id(spec.storage): spec.storage for spec in specs.values()}
    _check_memory(source, storages.values())
    types = _storage_types(source, specs)
    memory = {key: _read(source, storage, types[key]) for key, storage in storages.items()}
    return {name: _view(memory[id(spec.storage)], spec) for name, spec in specs.items()}


def check_claims(source: Source, specs: Mapping[str, TensorSpec], limits: Limits) -> None:
    """Compare what tensors claim with what their storages hold.

    Overlapping views (stride 0) can claim 10^12 elements of 4 bytes: what would unfold must stay near what is held.
    Distinct views of a storage may together claim twice what it holds, plus a fixed allowance for small expansions.

    Raises:
        InputRefused: a tensor reaches outside its storage, or all claim far more than is held.
    """
    for name, spec in specs.items():
        _check_range(source, name, spec)
    held = sum(storage.n_bytes for storage in {id(spec.storage): spec.storage for spec in specs.values()}.values())
    distinct = {spec.view: spec for spec in specs.values()}
    claimed = sum(spec.n_elements * ITEM_BYTES[spec.dtype] for spec in distinct.values())
    if claimed > 2 * held + limits.free_view:
        raise source.unsafe(f"its tensors claim {claimed:,} bytes of the {held:,} it holds")


def tied_groups(specs: Mapping[str, TensorSpec]) -> tuple[tuple[str, ...], ...]:
    """Names of tensors that are the same memory seen the same way, in file order, groups of two or more."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, spec in specs.items():
        if spec.n_elements:
            groups.setdefault(spec.view, []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _check_range(source: Source, name: str, spec: TensorSpec) -> None:
    """The last element must lie inside the storage as claimed; whether the claim is true, `_read` finds out."""
    if not spec.n_elements:
        return
    last = spec.offset + sum((length - 1) * step for length, step in zip(spec.shape, spec.stride, strict=True))
    if (last + 1) * ITEM_BYTES[spec.dtype] > spec.storage.n_bytes:
        raise source.corrupt(f"tensor {short(name)} reaches outside the {spec.storage.n_bytes:,} bytes of its storage")


def _check_memory(source: Source, storages: Iterable[StorageSpec]) -> None:
    held, free = sum(storage.n_bytes for storage in storages), available_bytes()
    if held > free:
        raise AnalysisIncomplete(
            f"{source.label!r} holds {gigabytes(held)} of tensors and {gigabytes(free)} is free",
            "use a smaller model or a machine with more memory",
        )


def _storage_types(source: Source, specs: Mapping[str, TensorSpec]) -> dict[int, str]:
    """The element type of each storage, which decides how bytes of the other endianness are swapped."""
    types: dict[int, str] = {}
    for name, spec in specs.items():
        known = types.setdefault(id(spec.storage), spec.dtype)
        if spec.storage.big_endian and known != spec.dtype:
            raise source.corrupt(f"tensor {short(name)} shares big-endian memory with another element type")
    return types


def _read(source: Source, storage: StorageSpec, dtype: str) -> Tensor:
    """The bytes of a storage as a uint8 tensor in this machine's byte order."""
    if storage.fill is None:
        raise source.corrupt("it names a storage that it does not hold")
    memory = torch.empty(storage.n_bytes, dtype=torch.uint8)
    if storage.n_bytes:
        storage.fill(memory.numpy().data)
    if storage.big_endian:
        width = ITEM_BYTES[dtype] // (2 if dtype.startswith("complex") else 1)
        memory = memory.view(-1, width).flip(1).reshape(-1)
    if dtype == "bool" and bool((memory > 1).any()):
        raise source.corrupt("a boolean tensor holds bytes that are neither true nor false")
    return memory


def _view(memory: Tensor, spec: TensorSpec) -> Tensor:
    dtype = TORCH_TYPES[spec.dtype]
    if not spec.n_elements:
        return torch.empty(spec.shape, dtype=dtype)
    whole = memory.numel() // ITEM_BYTES[spec.dtype] * ITEM_BYTES[spec.dtype]
    return torch.as_strided(memory[:whole].view(dtype), spec.shape, spec.stride, spec.offset)
