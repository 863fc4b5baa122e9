"""Find and load a tokenizer: the one the user names, or the one that lies with the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohomcli.errors import InputRefused, UsageError
from cohomcli.models import hub
from cohomcli.models.folder import has_tokenizer
from cohomcli.models.quiet import quiet
from cohomcli.models.resolve import resolve
from cohomcli.models.spec import LoadOptions, ModelSource
from cohomcli.models.wording import first_line


@dataclass(frozen=True)
class FoundTokenizer:
    """A tokenizer, or `refusal`: why texts cannot be read. `notes` say where it is from when that is not obvious."""

    tokenizer: Any = None
    refusal: InputRefused | None = None
    notes: tuple[str, ...] = ()


def find_tokenizer(source: ModelSource, beside: Path | None, config: Any, options: LoadOptions) -> FoundTokenizer:
    """The tokenizer `options` name, else the one in the folder `beside`; `config` is the model's, where it has one.

    Raises:
        UsageError: `options` name no folder, built-in model or hub id.
        InputRefused: the tokenizer named cannot be loaded. One that lies beside the model is given up with a reason.
    """
    if options.tokenizer is not None:
        named = load_tokenizer(_named_folder(options.tokenizer, options), config, options.trust_remote_code)
        return FoundTokenizer(named, notes=(f"texts are read with the tokenizer of {options.tokenizer!r}",))
    if beside is None or not has_tokenizer(beside):
        where = "beside the file" if source.kind == "file" else "into the folder"
        hint = f"put its tokenizer.json (or vocab files) {where}, or name one with --tokenizer"
        if source.kind == "file":
            hint += "; `cohom precision` with --input or --input-shape needs none"
        return FoundTokenizer(refusal=InputRefused(f"model {source.name!r} has no tokenizer", hint))
    try:
        return FoundTokenizer(load_tokenizer(beside, config, options.trust_remote_code))
    except InputRefused as error:
        return FoundTokenizer(refusal=error)


def _named_folder(reference: str, options: LoadOptions) -> Path:
    """The folder `--tokenizer` names; of a hub model only the small files are fetched."""
    path = Path(reference).expanduser()
    if path.is_dir():
        return path
    found = resolve(reference)
    if found.kind in ("preset", "hub"):
        return hub.fetch(found.location, LoadOptions(trust_remote_code=options.trust_remote_code), weights=False)
    if found.path is None or found.kind not in ("builtin", "folder"):
        raise UsageError(f"--tokenizer {reference!r} is a {found.kind}", "name a folder, a built-in model or a hub id")
    return found.path


def load_tokenizer(path: Path, config: Any, trust_remote_code: bool) -> Any:
    """The folder's tokenizer; `config` is the model's transformers configuration.

    Raises:
        InputRefused: there is none, it is broken, needs a missing package, or runs code without permission.
    """
    from transformers import AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                str(path), config=config, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except ImportError as error:
        raise InputRefused(f"the tokenizer of {str(path)!r} needs a missing package", first_line(error)) from error
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        if "trust_remote_code" in str(error):
            raise InputRefused(
                f"the tokenizer of {str(path)!r} comes with its own Python code",
                "read that code, then allow it with --trust-remote-code",
            ) from error
        raise InputRefused(
            f"the tokenizer of {str(path)!r} cannot be read: {first_line(error)}", "save it again with the model"
        ) from error
    return with_padding(tokenizer)


def with_padding(tokenizer: Any) -> Any:
    """Give a tokenizer without a padding token the end-of-text or unknown token for it: masks hide what it is."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer
