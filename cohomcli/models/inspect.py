"""What is this model and what would an analysis of it take? Answered from settings and headers, without its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from cohomcli.errors import AnalysisIncomplete, InputRefused
from cohomcli.models import hub
from cohomcli.models.files.opened import OpenedFile
from cohomcli.models.files.safetensors_data import format_name
from cohomcli.models.folder import ModelFolder, read_config, read_folder
from cohomcli.models.fromfile import as_single_file, open_file
from cohomcli.models.gguf_header import read_gguf_header
from cohomcli.models.layout import find_stacks, vocabulary
from cohomcli.models.load import language_model, load_opened
from cohomcli.models.memory import available_bytes, choose_token_budget, forecast, gigabytes
from cohomcli.models.pretrained import claims_causal, needs_code, read_transformers_config, skeleton
from cohomcli.models.spec import (
    ActivationOptions,
    LoadedModel,
    LoadOptions,
    ModelDescription,
    ModelInfo,
    ModelKind,
    ModelSource,
)

Files = tuple[tuple[str, int], ...]


def describe(
    source: ModelSource, options: LoadOptions, activations: ActivationOptions | None = None
) -> ModelDescription:
    """Describe what `resolve` returned; of a hub model only the settings files are downloaded.

    Raises:
        InputRefused: not available, not a model we read, or corrupt; of a file also all that `load` refuses. Code that
            comes with a model is not run.
    """
    source = as_single_file(source, options)
    if source.kind == "file":
        return _describe_language_model(source, options, activations)
    if source.gguf_file:
        file = Path(source.location) / source.gguf_file
        return _plan(source, _gguf_facts(file), ((file.name, file.stat().st_size),), activations)
    if source.path is not None:
        folder = read_folder(source.path, source.weights_file)
        files: Files = tuple((file.name, file.stat().st_size) for file in folder.weights)
    else:
        settings = hub.fetch(source.location, options, weights=False)
        folder = ModelFolder(settings, read_config(settings), (), is_safetensors=True)
        files = tuple(hub.remote_weights(source.location, options).items())
    facts = _code_facts(folder) if needs_code(folder.config) else _folder_facts(folder)
    return _plan(source, facts, files, activations)


@dataclass(frozen=True)
class FileDescription:
    """What one file holds, and how far it can be analysed.

    `format` is its kind by its bytes, `dtypes` are the stored element types, `root_class` is the class a pickled or
    scripted module names, `others` are further places in the file that hold tensors, with their number. `info` says
    what `load_any` makes of it and `built_from` by which way; else `why` and `hint` say what is missing. `samples` are
    the inputs of an exported program as (dtype, shape). `model` has the forecasts for feeding texts to it; `refusal`
    is why that is not possible.
    """

    source: ModelSource
    format: str
    n_bytes: int
    n_tensors: int
    n_parameters: int
    dtypes: tuple[str, ...]
    info: ModelInfo
    root_class: str
    built_from: str
    why: str
    hint: str
    place: str
    others: tuple[tuple[str, int], ...]
    samples: tuple[tuple[str, tuple[int, ...]], ...]
    notes: tuple[str, ...]
    refusal: str = ""
    model: ModelDescription | None = None


def describe_file(
    source: ModelSource, options: LoadOptions, activations: ActivationOptions | None = None
) -> FileDescription:
    """Read a single file whole and say what it holds: what its weights are shows only when they are read.

    Raises:
        As `load_any`.
    """
    opened = open_file(source, options, layers=False)
    found = load_opened(source, opened, options)
    program = isinstance(found, LoadedModel)
    described = FileDescription(
        source=source,
        format=opened.file.kind,
        n_bytes=opened.file.path.stat().st_size,
        n_tensors=len(opened.file.tensors),
        n_parameters=opened.file.n_parameters,
        dtypes=_stored_types(opened),
        info=found.info,
        root_class=opened.file.root_class,
        built_from=opened.built_from if program else "",
        why=opened.why,
        hint=opened.hint,
        place=opened.file.place,
        others=opened.file.others,
        samples=tuple((str(v.dtype).removeprefix("torch."), tuple(v.shape)) for v in opened.file.sample_inputs),
        notes=found.notes,
    )
    try:
        return replace(described, model=_describe_language_model(source, options, activations, opened))
    except InputRefused as error:
        return replace(described, refusal=str(error))


def _describe_language_model(
    source: ModelSource, options: LoadOptions, activations: ActivationOptions | None, opened: OpenedFile | None = None
) -> ModelDescription:
    """Describe a file's language model; raises the InputRefused that says why there is none."""
    if opened is None or opened.built_from == "exported-graph":
        opened = open_file(source, options, layers=True)
    loaded = language_model(load_opened(source, opened, options))
    info, config = loaded.info, cast(Any, loaded.model).config
    facts = _Facts(
        architecture=info.architecture,
        kind=info.kind,
        n_layer=info.n_layer,
        vocab_size=info.vocab_size,
        n_parameters=info.n_parameters,
        max_positions=info.max_positions,
        config=config.get_text_config(),
        dtypes=_stored_types(opened),
        notes=loaded.notes,
    )
    return _plan(source, facts, ((opened.file.path.name, opened.file.path.stat().st_size),), activations)


def _stored_types(opened: OpenedFile) -> tuple[str, ...]:
    kinds = {str(value.dtype).removeprefix("torch.") for value in opened.file.tensors.values()}
    return tuple(sorted(map(format_name, kinds)))


@dataclass(frozen=True)
class _Facts:
    """What the settings say; `config` has what the memory forecast reads."""

    architecture: str
    kind: ModelKind
    n_layer: int
    vocab_size: int
    n_parameters: int
    max_positions: int | None
    config: Any
    dtypes: tuple[str, ...]
    needs_code: bool = False
    notes: tuple[str, ...] = ()


def _folder_facts(folder: ModelFolder) -> _Facts:
    """From a configuration transformers knows, built without storage."""
    config = read_transformers_config(folder, trust_remote_code=False)
    model = skeleton(config)
    layout = find_stacks(model)
    text = config.get_text_config()
    kind: ModelKind = "decoder" if claims_causal(config) else "encoder"
    return _Facts(
        architecture=type(model).__name__,
        kind="encoder-decoder" if layout.is_encoder_decoder else kind,
        n_layer=layout.n_layer,
        vocab_size=vocabulary(model),
        n_parameters=sum(value.numel() for value in model.parameters()),
        max_positions=_whole(getattr(text, "max_position_embeddings", None)),
        config=text,
        dtypes=_dtypes(folder),
        notes=() if folder.has_tokenizer else ("no tokenizer: this model cannot be run on text",),
    )


def _code_facts(folder: ModelFolder) -> _Facts:
    """From the figures in `config.json` as they stand: only code that comes with the model knows what they mean."""
    said = folder.config
    tensors = folder.tensors()
    return _Facts(
        architecture=str((said.get("architectures") or ["unknown"])[0]),
        kind="decoder" if "AutoModelForCausalLM" in said["auto_map"] else "encoder",
        n_layer=_whole(said.get("num_hidden_layers")) or 0,
        vocab_size=_whole(said.get("vocab_size")) or 0,
        n_parameters=sum(entry.n_elements for entry in tensors.values()),
        max_positions=_whole(said.get("max_position_embeddings")),
        config=SimpleNamespace(**{**said, "hidden_size": _whole(said.get("hidden_size")) or 0}),
        dtypes=_dtypes(folder),
        needs_code=True,
        notes=("it comes with its own Python code, which runs only with --trust-remote-code",),
    )


def _gguf_facts(file: Path) -> _Facts:
    header = read_gguf_header(file)
    return _Facts(
        architecture=header.architecture,
        kind="decoder",
        n_layer=header.number("block_count") or 0,
        vocab_size=header.number("vocab_size") or _whole(header.metadata.get("tokenizer.ggml.tokens")) or 0,
        n_parameters=header.n_parameters,
        max_positions=header.number("context_length"),
        config=SimpleNamespace(
            hidden_size=header.number("embedding_length") or 0,
            intermediate_size=header.number("feed_forward_length"),
            num_attention_heads=header.number("attention.head_count"),
        ),
        dtypes=header.dtypes,
        notes=("GGUF weights are dequantised to float32",),
    )


def _plan(source: ModelSource, facts: _Facts, files: Files, activations: ActivationOptions | None) -> ModelDescription:
    """Add the forecast: what loading and one batch take, and whether that is there."""
    wanted = activations or ActivationOptions()
    longest = min(wanted.max_length, facts.max_positions or wanted.max_length)
    needs = forecast(facts.config, facts.n_parameters, longest, wanted.perplexity)
    from_torch_files = sum(size for name, size in files if name.endswith(".bin"))
    free = available_bytes()
    notes = list(facts.notes)
    try:
        budget = choose_token_budget(needs, longest, wanted.token_budget)
    except AnalysisIncomplete as error:
        budget = longest
        notes.append(error.message)
    if needs.weights + from_torch_files > free:
        notes.append(f"it does not fit: {gigabytes(needs.weights)} of float32 weights, {gigabytes(free)} free")
    return ModelDescription(
        source=source,
        architecture=facts.architecture,
        kind=facts.kind,
        n_layer=facts.n_layer,
        hidden_size=int(facts.config.hidden_size),
        vocab_size=facts.vocab_size,
        n_parameters=facts.n_parameters,
        max_positions=facts.max_positions,
        files=files,
        dtypes=facts.dtypes,
        load_bytes=needs.weights + from_torch_files,
        forward_bytes=needs.forward(budget),
        available_bytes=free,
        token_budget=budget,
        token_bytes=needs.per_token,
        needs_remote_code=facts.needs_code,
        notes=tuple(notes),
    )


def _dtypes(folder: ModelFolder) -> tuple[str, ...]:
    return tuple(sorted({entry.dtype for entry in folder.tensors().values()}))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
