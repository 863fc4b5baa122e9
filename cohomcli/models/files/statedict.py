"""Find the model's weights inside whatever a training script saved around them, always the same way, and say where."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.files.contents import Names, leaf, scalar, settings
from cohomcli.models.files.limits import Limits
from cohomcli.models.files.modules import ModuleContent, is_module, read_module
from cohomcli.models.files.objects import Inert
from cohomcli.models.files.source import Source, short

# Names under which scripts keep the weights, best first; a mapping of tensors at the root of the file comes next.
_PREFERRED = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params", "weights",
)  # fmt: skip
_ROOT_RANK, _UNNAMED_RANK = len(_PREFERRED), len(_PREFERRED) + 1
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged|shadow)(_|$)")
_NOT_WEIGHTS = re.compile(r"optim|^opt$|sched|scaler|(^|_)rng(_|$)|callback|^loops$|^grad|^amp$|momentum|exp_avg")
# Wrappers that prefix every name and are never part of the model: DDP, torch.compile, FSDP, activation checkpointing.
_OUTER_WRAPPERS = ("module.", "_orig_mod.")
_INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_SETTING_KEYS = ("model_args", "hyper_parameters", "hparams", "config", "args", "cfg")
_MAX_LEVELS = 5
_MAX_LIST = 10_000  # a longer list is a log, not a list of weights
_MAX_SCALARS = 50


@dataclass
class Choice:
    """The chosen weights. `path` leads to them inside the file ("" is the file itself); `others` lists what else could
    have been chosen with its number of tensors; `stripped` is the wrapper prefix taken off every name.
    """

    content: ModuleContent
    path: str = ""
    others: tuple[tuple[str, int], ...] = ()
    stripped: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Candidate:
    path: tuple[str, ...]
    value: Any
    n_tensors: int

    @property
    def rank(self) -> tuple[bool, int, int, int, tuple[str, ...]]:
        """Smaller is better: trained before averaged, known names, more tensors, nearer the root, then by name."""
        name = self.path[-1].lower() if self.path else ""
        known = _PREFERRED.index(name) if name in _PREFERRED else _UNNAMED_RANK
        place = known if self.path else _ROOT_RANK
        averaged = any(_AVERAGED.search(part.lower()) for part in self.path)
        return averaged, place, -self.n_tensors, len(self.path), self.path


def choose_state_dict(source: Source, root: object, limits: Limits, at: str = "") -> Choice:
    """Choose the weights in `root`; `at` names the place instead, as in `"model_ema.state_dict"`.

    Raises:
        InputRefused: there are no tensors.
        UsageError: `at` is not a place that holds tensors.
    """
    single = leaf(root)
    if single is not None:
        return Choice(ModuleContent(tensors={"tensor": single}))
    found = sorted(_candidates(source, root, limits), key=lambda candidate: candidate.rank)
    if not found:
        raise InputRefused(f"{source.label!r} holds no tensors", "give the file that holds the model's weights")
    if at:
        best = _named(source, found, at)
    else:
        kept = [candidate for candidate in found if not _is_other(candidate)]
        best = _merged(kept or found)
    others = tuple(
        (".".join(other.path), other.n_tensors) for other in found if other.path[: len(best.path)] != best.path
    )
    choice = Choice(_content(source, best.value, limits), ".".join(best.path), others, "", _facts(root))
    _unwrap(choice)
    return choice


def _candidates(source: Source, root: object, limits: Limits) -> Iterator[_Candidate]:
    """Every module and every mapping or list that directly holds tensors, breadth first, each object once."""
    names = Names(source, limits)
    seen: set[int] = set()
    pending: list[tuple[tuple[str, ...], object]] = [((), root)]
    while pending:
        following: list[tuple[tuple[str, ...], object]] = []
        pending.sort(key=lambda item: _Candidate(item[0], None, 0).rank)  # of two names of one object, the better
        for path, value in pending:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if is_module(value):
                yield _Candidate(path, value, len(read_module(source, value, limits).tensors))  # type: ignore[arg-type]
                continue
            held = _members(value)
            n_tensors = sum(leaf(item) is not None for item in held.values())
            if n_tensors:
                yield _Candidate(path, value, n_tensors)
            if len(path) < _MAX_LEVELS:
                following += [(names.join(path, key), item) for key, item in held.items() if _members(item)]
        pending = following


def _members(value: object) -> dict[str, object]:
    """The named members of a mapping, sequence or mapping-like object; empty for anything else."""
    if isinstance(value, Inert):
        value = value.items or value.fields
    if isinstance(value, (list, tuple)) and len(value) <= _MAX_LIST:
        return {str(index): item for index, item in enumerate(value)}
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if isinstance(key, str)}
    return {}


def _is_other(candidate: _Candidate) -> bool:
    return any(_NOT_WEIGHTS.search(part.lower()) for part in candidate.path)


def _merged(ranked: list[_Candidate]) -> _Candidate:
    """The best candidate with everything nested in it; when it has no known name, with all of its kind.

    So `{"encoder": {...}, "decoder": {...}}` and nested mappings as JAX programs save them become one state dict.
    """
    best = ranked[0]
    if best.rank[1] < _ROOT_RANK or best.rank[0]:
        group = [other for other in ranked if other.path[: len(best.path)] == best.path]
    else:
        group = [other for other in ranked if other.rank[1] >= _ROOT_RANK]
    group = [other for other in group if other.rank[0] == best.rank[0]]
    if len(group) == 1:
        return best
    common = group[0].path
    for other in group[1:]:
        length = next((i for i, (a, b) in enumerate(zip(common, other.path, strict=False)) if a != b), None)
        common = common[: min(len(common), len(other.path)) if length is None else length]
    merged = {other.path[len(common) :]: other.value for other in sorted(group, key=lambda other: other.path)}
    return _Candidate(common, merged, sum(other.n_tensors for other in group))


def _named(source: Source, found: list[_Candidate], at: str) -> _Candidate:
    for candidate in found:
        if ".".join(candidate.path) == at:
            return candidate
    places = ", ".join(short(".".join(candidate.path)) for candidate in found[:6])
    raise UsageError(f"{source.label!r} holds no tensors at {at!r}", f"it holds some at {places}")


def _content(source: Source, value: Any, limits: Limits) -> ModuleContent:
    if is_module(value):
        return read_module(source, value, limits)
    if isinstance(value, dict) and value and all(isinstance(key, tuple) for key in value):  # several, from `_merged`
        joined = ModuleContent()
        for path, part in value.items():
            joined.update(_content(source, part, limits), ".".join(path))
        return joined
    leaves = {name: leaf(item) for name, item in _members(value).items()}
    return ModuleContent(tensors={name: found for name, found in leaves.items() if found is not None})


def _unwrap(choice: Choice) -> None:
    """Take wrapper prefixes off the names, when that leaves them distinct."""
    names = list(choice.content.tensors)
    new = names
    stripped = ""
    while prefix := next((p for p in _OUTER_WRAPPERS if new and all(name.startswith(p) for name in new)), ""):
        new = [name.removeprefix(prefix) for name in new]
        stripped += prefix
    for wrapper in _INNER_WRAPPERS:
        new = [name.replace(wrapper, "") for name in new]
    if len(set(new)) == len(new) and all(new):
        choice.content.tensors = dict(zip(new, choice.content.tensors.values(), strict=True))
        choice.content.strip_tree(stripped)
        choice.stripped = stripped


def _facts(root: object) -> dict[str, Any]:
    """Plain facts a checkpoint carries beside its weights: epoch, step, and the arguments the model was made with."""
    held = {} if is_module(root) else _members(root)
    facts = {key: value for key, value in held.items() if scalar(value) and value is not None}
    facts = dict(list(facts.items())[:_MAX_SCALARS])
    for key in _SETTING_KEYS:
        plain = settings(held[key]) if key in held else {}
        if plain:
            facts[key] = plain
    return facts
