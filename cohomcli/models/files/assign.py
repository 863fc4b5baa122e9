"""Put a file's tensors into a module: every name accounted for, element types kept, tied parameters still tied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.wording import some

_MAX_PREFIX_PARTS = 3


def best_prefix(names: Iterable[str], wanted: set[str]) -> str:
    """The prefix of `names` whose removal makes most of them `wanted` ones; "" when none helps.

    Training code wraps models (`model.`, `net.`, `student.encoder.`); of equally good prefixes the shortest wins.
    """
    listed = list(names)
    prefixes = {""}
    for name in listed:
        parts = name.split(".")
        prefixes.update(".".join(parts[:count]) + "." for count in range(1, min(len(parts), _MAX_PREFIX_PARTS + 1)))
    hits = {p: sum(n.startswith(p) and n.removeprefix(p) in wanted for n in listed) for p in prefixes}
    return min(prefixes, key=lambda prefix: (-hits[prefix], len(prefix), prefix))


def strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """`tensors` with `prefix` taken off the names that have it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor], label: str) -> str:
    """Replace every parameter and persistent buffer of `module` by the stored tensor of its name, bit for bit.

    A wrapper prefix is taken off all names first; it is returned. Of tied parameters one stored name is enough; when
    several are stored they must agree.

    Raises:
        InputRefused: names are missing or left over, shapes differ, or tied parameters have different stored values.
    """
    wanted = module.state_dict(keep_vars=True)
    prefix = best_prefix(tensors, set(wanted))
    given = strip(tensors, prefix)
    tied: dict[int, list[str]] = {}
    for name, value in wanted.items():
        tied.setdefault(id(value), []).append(name)
    _account_for(wanted, given, tied.values(), label)
    for names in tied.values():
        _replace(module, names, [given[name] for name in names if name in given], label)
    return prefix


def _account_for(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], tied: Iterable[list[str]], label: str
) -> None:
    present = set(given)
    missing = [names[0] for names in tied if not present.intersection(names)]
    problems = {
        "missing": sorted(missing),
        "of another shape": sorted(
            name for name in wanted if name in given and given[name].shape != wanted[name].shape
        ),
        "left over": sorted(present - set(wanted)),
    }
    found = [f"{len(names)} {word} ({some(names)})" for word, names in problems.items() if names]
    if found:
        raise InputRefused(
            f"the weights of {label!r} do not fit the model: {'; '.join(found)}", "check the model's code"
        )


def _replace(module: nn.Module, names: list[str], values: list[Tensor], label: str) -> None:
    """Put one tensor under all `names`, which are one tensor in the module."""
    value = values[0]
    if any(not _same(value, other) for other in values[1:]):
        raise InputRefused(f"{label!r} stores different values for tied {some(names)}", "check the model's code")
    shared: Tensor | None = None
    for name in names:
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        if last in owner._parameters:
            if shared is None:
                shared = nn.Parameter(value, requires_grad=value.is_floating_point() or value.is_complex())
            owner._parameters[last] = shared  # type: ignore[assignment]
        else:
            owner._buffers[last] = value


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.data_ptr() == other.data_ptr() or bool(
        torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
    )
