"""From one file to what `load` hands out: its program or its weights, and what a reader must know about the way."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cohomcli.errors import InputRefused
from cohomcli.models.files.opened import BuiltFrom, FileOptions, OpenedFile, open_model_file
from cohomcli.models.pretrained import Built, Head, choose_class, claims_causal
from cohomcli.models.spec import LoadedWeights, LoadOptions, ModelInfo, ModelSource
from cohomcli.models.weights import fingerprint_tensors

NO_LAYERS = "`cohom precision` analyses it with --input or --input-shape"
_WAYS: dict[BuiltFrom, str] = {
    "model-code": "the model was built by the code given with --model-code",
    "config-json": "the model was built from the config.json given",
    "pickled-config": "the model was rebuilt from the configuration pickled with it, not by its own code",
    "torch.nn": "the model was rebuilt from the torch.nn layers the file describes",
    "exported-graph": "the exported program is run from its graph, at the shapes it was exported with",
    "family": "the architecture was inferred from the names and shapes of the weights",
}


def as_single_file(source: ModelSource, options: LoadOptions) -> ModelSource:
    """The file itself where a folder's weights were named together with an option that only a file understands."""
    if source.kind == "folder" and source.weights_file and options.for_files:
        return ModelSource(source.name, "file", str(Path(source.location) / source.weights_file))
    return source


def unused_options(source: ModelSource, options: LoadOptions) -> tuple[str, ...]:
    """A note on options for single files that were given for something else."""
    if source.kind == "file" or not options.for_files:
        return ()
    return (f"{', '.join(options.for_files)}: not used, for {source.name} is not a single file",)


def open_file(source: ModelSource, options: LoadOptions, layers: bool) -> OpenedFile:
    """Open the file of a source; `layers` asks for a model whose layers are known, as reading texts needs them.

    Raises:
        InputRefused: the file cannot be read, or does not fit what was given with it.
        UsageError: an option names something that does not exist.
        AnalysisIncomplete: it does not fit into memory.
    """
    wanted = FileOptions(options.weights_at or "", options.config_json, options.model_code or "", options.trust, layers)
    return open_model_file(Path(source.location), wanted)


def transformers_parts(opened: OpenedFile) -> Built | None:
    """The model with its head, when it is one of transformers'."""
    model: Any = opened.model
    if not hasattr(model, "base_model_prefix"):
        return None
    wanted, head = choose_class(model.config)
    trained: Head = head if type(model) is wanted else None
    return Built(model, trained, claims_causal(model.config))


def class_name(opened: OpenedFile) -> str:
    """What to call the architecture: the class, or for an exported graph, which has none, that of its origin."""
    if opened.model is not None and opened.built_from != "exported-graph":
        return type(opened.model).__name__
    return opened.file.root_class or opened.family or "unknown"


def no_layers(source: ModelSource, opened: OpenedFile) -> InputRefused:
    """The error of commands that need named layers, for a program that is no transformers model."""
    return InputRefused(f"{source.location!r} holds a {class_name(opened)}, whose layers are not known here", NO_LAYERS)


def sample_inputs(opened: OpenedFile) -> tuple[Tensor, ...]:
    """The inputs of an exported program, float32 where floating; empty unless there is one for every argument."""
    if opened.built_from != "exported-graph" or not isinstance(opened.model, torch.fx.GraphModule):
        return ()
    given = opened.file.sample_inputs
    wanted = [node for node in opened.model.graph.nodes if node.op == "placeholder"]
    return tuple(map(_computed, given)) if len(given) == len(wanted) else ()


def _computed(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def refuse_complex(model: nn.Module, name: str) -> None:
    """Conversion to float32 would drop imaginary parts.

    Raises:
        InputRefused: there is a complex parameter or buffer.
    """
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_complex():
            raise InputRefused(f"model {name!r} has complex weights in {key!r}", "only real models are analysed")


def file_notes(opened: OpenedFile) -> tuple[str, ...]:
    """How the model came about, every assumption, what was converted, and the reader's own notes."""
    notes = [_WAYS[opened.built_from]] if opened.built_from else []
    notes += [f"assumed: {text}" for text in opened.assumptions]
    if opened.model is not None:
        kinds = {value.dtype for value in opened.file.tensors.values() if value.is_floating_point()}
        others = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
        if others:
            lost = ", with rounding" if torch.float64 in kinds else ""
            notes.append(f"weights stored as {', '.join(others)} are computed in float32{lost}")
    return (*notes, *opened.file.notes)


def trust_record(opened: OpenedFile, options: LoadOptions) -> dict[str, Any]:
    """What was allowed to run for this file, for `ModelInfo.trust`."""
    record: dict[str, Any] = {}
    if opened.file.trusted is not None:
        record["file"] = opened.file.trusted
    if opened.built_from == "model-code" and options.model_code:
        file, _, function = options.model_code.rpartition(":")
        code = Path(file).expanduser().read_bytes()
        record["model_code"] = {"file": file, "function": function, "sha256": hashlib.sha256(code).hexdigest()}
    return record


def weights_alone(source: ModelSource, opened: OpenedFile, options: LoadOptions) -> LoadedWeights:
    """What is left when no program can be built."""
    file = opened.file
    info = ModelInfo(
        name=source.name,
        source=source.kind,
        location=source.location,
        architecture=class_name(opened),
        kind="weights",
        n_layer=0,
        hidden_size=0,
        vocab_size=0,
        n_parameters=file.n_parameters,
        max_positions=None,
        lm_head=None,
        weights_sha256=fingerprint_tensors(file.tensors.items()),
        trust=trust_record(opened, options),
    )
    return LoadedWeights(file.tensors, info, opened.why, opened.hint, file_notes(opened))
