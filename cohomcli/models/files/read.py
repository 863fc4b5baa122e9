"""Read one model file of any kind: `read_model_file` is the whole door, and nothing behind it runs the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models.files.archive import Archive
from cohomcli.models.files.arrays import read_npy, read_npz
from cohomcli.models.files.contents import Leaf, leaf
from cohomcli.models.files.exported import read_exported, read_sample_inputs
from cohomcli.models.files.limits import DEFAULT, Limits
from cohomcli.models.files.modelfile import ModelFile
from cohomcli.models.files.modules import ModuleContent
from cohomcli.models.files.objects import ITEM_BYTES, TensorSpec, Unread
from cohomcli.models.files.safetensors_data import format_name, read_safetensors
from cohomcli.models.files.sniff import FileKind, refuse, sniff_source
from cohomcli.models.files.source import Source, open_source
from cohomcli.models.files.statedict import Choice, choose_state_dict
from cohomcli.models.files.tensors import check_claims, materialise, tied_groups
from cohomcli.models.files.torchfile import read_legacy, read_plain, read_zip_pickle
from cohomcli.models.files.torchscript import read_torchscript
from cohomcli.models.safetensors_header import TensorEntry

_NESTED: frozenset[FileKind] = frozenset({"torch-zip", "torch-legacy", "pickle"})  # may hold several sets of weights
_EXTRA = "\0extra "  # keeps both kinds of names apart while they are read together, for they may share storages


@dataclass
class _Found:
    choice: Choice
    has_checksums: bool = True
    graph: Mapping[str, Any] | None = None
    samples: dict[str, Leaf] = field(default_factory=dict)


def read_model_file(path: Path, limits: Limits = DEFAULT, at: str = "") -> ModelFile:
    """Read a model file without running anything it says.

    Reads torch state dicts, nested checkpoints and pickled modules (zip and legacy), plain pickles, TorchScript,
    torch.export `.pt2`, safetensors, `.npy` and `.npz`. `at` names the place of the weights inside a checkpoint that
    holds several sets, as listed in `ModelFile.others`.

    Raises:
        InputRefused: missing, not a model file, damaged, unsafe, or without any tensor; one line says which.
        UsageError: `at` is not a place that holds tensors.
        AnalysisIncomplete: its tensors do not fit into memory.
    """
    with open_source(path) as source:
        found = sniff_source(source, limits)
        if not found.readable:
            raise refuse(source, found)
        if at and found.kind not in _NESTED:
            raise UsageError(
                f"{source.label!r} is a file of the kind {found.kind}, which holds one set of weights",
                "leave --weights-at out",
            )
        return _assemble(source, path, found.kind, _READERS[found.kind](source, limits, at), limits)


def list_tensors(path: Path, limits: Limits = DEFAULT) -> dict[str, TensorEntry]:
    """The tensors `read_model_file` would read, without their data: element type, shape and size by name.

    Raises:
        InputRefused: missing, not a model file, damaged as far as that shows without the data, or unsafe.
    """
    with open_source(path) as source:
        found = sniff_source(source, limits)
        if not found.readable:
            raise refuse(source, found)
        content = _READERS[found.kind](source, limits, "").choice.content
        specs = {name: value for name, value in content.tensors.items() if isinstance(value, TensorSpec)}
        check_claims(source, specs, limits)
    return {
        name: TensorEntry(format_name(spec.dtype), spec.shape, spec.n_elements * ITEM_BYTES[spec.dtype])
        for name, spec in specs.items()
    }


def _assemble(source: Source, path: Path, kind: FileKind, found: _Found, limits: Limits) -> ModelFile:
    """Read the bytes of every tensor that was described, and note what was not."""
    choice = found.choice
    content = choice.content
    named: dict[str, Leaf] = {**content.tensors, **{f"{_EXTRA}{name}": value for name, value in content.extras.items()}}
    specs = {name: value for name, value in named.items() if isinstance(value, TensorSpec)}
    samples = {f"{_EXTRA}{name}": value for name, value in found.samples.items() if isinstance(value, TensorSpec)}
    tensors = materialise(source, {**specs, **samples}, limits)
    unread = {name: value.why for name, value in content.tensors.items() if isinstance(value, Unread)}
    kept = {name: tensors[name] for name in content.tensors if name in tensors}
    if not kept:
        why = f": {next(iter(unread.values()))}" if unread else ""
        raise InputRefused(f"{source.label!r} holds no readable tensors{why}", "save the model's state_dict()")
    return ModelFile(
        path=path,
        kind=kind,
        tensors=kept,
        extras={name.removeprefix(_EXTRA): tensors[name] for name in specs if name.startswith(_EXTRA)},
        module_tree=content.tree,
        module_settings=content.settings,
        tied=tied_groups({name: spec for name, spec in specs.items() if not name.startswith(_EXTRA)}),
        unread=unread,
        place=choice.path,
        others=choice.others,
        stripped=choice.stripped,
        config=content.config,
        config_class=content.config_class,
        facts=choice.facts,
        graph=found.graph,
        sample_inputs=tuple(tensors[name] for name in samples),
        notes=_notes(kind, found, unread),
    )


def _notes(kind: FileKind, found: _Found, unread: dict[str, str]) -> tuple[str, ...]:
    choice = found.choice
    notes = []
    if choice.path:
        notes.append(f"weights taken from {choice.path!r} inside the file")
    for place, count in choice.others[:5]:
        notes.append(f"not used: {count} tensors at {place!r}")
    if choice.stripped:
        notes.append(f"the prefix {choice.stripped!r} was taken off every name")
    if choice.content.tree.get("") and kind in ("torch-zip", "torch-legacy", "pickle"):
        notes.append(f"a pickled {choice.content.tree['']}: read inertly, its code was not run")
    if not found.has_checksums:
        notes.append("the file was written without checksums: damage to it cannot be noticed")
    for name, why in list(unread.items())[:5]:
        notes.append(f"{name!r} was not read: it is {why}")
    skipped = [name for name, value in choice.content.extras.items() if isinstance(value, Unread)]
    if skipped:
        notes.append(f"{len(skipped)} constants were not read, for they are pickled objects ({skipped[0]!r})")
    return tuple(notes)


def _zip_archive(source: Source, limits: Limits, at: str) -> _Found:
    archive = Archive(source, limits)
    root = read_zip_pickle(source, archive, limits, f"{archive.root}data.pkl", f"{archive.root}data/")
    return _Found(choose_state_dict(source, root, limits, at), archive.has_checksums)


def _legacy(source: Source, limits: Limits, at: str) -> _Found:
    return _Found(choose_state_dict(source, read_legacy(source, limits), limits, at))


def _plain(source: Source, limits: Limits, at: str) -> _Found:
    return _Found(choose_state_dict(source, read_plain(source, limits), limits, at))


def _torchscript(source: Source, limits: Limits, _: str) -> _Found:
    archive = Archive(source, limits)
    return _Found(Choice(read_torchscript(source, archive, limits)), archive.has_checksums)


def _exported(source: Source, limits: Limits, _: str) -> _Found:
    archive = Archive(source, limits)
    content, graph = read_exported(source, archive, limits)
    given = read_sample_inputs(source, archive, limits)
    return _Found(Choice(content), archive.has_checksums, graph, _flat_leaves(given))


def _flat_leaves(value: object) -> dict[str, Leaf]:
    """The tensors of ((args...), {keywords...}), in order: what the program was exported with."""
    found: dict[str, Leaf] = {}
    parts = value if isinstance(value, (tuple, list)) else ()
    for number, part in enumerate(parts[:2]):
        items = part.items() if isinstance(part, dict) else enumerate(part if isinstance(part, (tuple, list)) else ())
        for name, item in items:
            made = leaf(item)
            if made is not None:
                found[f"input {number} {name}"] = made
    return found


def _npy(source: Source, _: Limits, __: str) -> _Found:
    return _Found(Choice(ModuleContent(tensors={"array": read_npy(source)})))


def _npz(source: Source, limits: Limits, _: str) -> _Found:
    return _Found(Choice(ModuleContent(tensors=read_npz(source, Archive(source, limits), limits))))


def _safetensors(source: Source, _: Limits, __: str) -> _Found:
    tensors, facts = read_safetensors(source, Path(source.label))
    return _Found(Choice(ModuleContent(tensors=tensors), facts=dict(facts)))


_READERS: dict[str, Callable[[Source, Limits, str], _Found]] = {
    "torch-zip": _zip_archive,
    "torch-legacy": _legacy,
    "pickle": _plain,
    "torchscript": _torchscript,
    "exported": _exported,
    "safetensors": _safetensors,
    "npy": _npy,
    "npz": _npz,
}
