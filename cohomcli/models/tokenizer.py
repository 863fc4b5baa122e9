"""Load a model's tokenizer from its folder, and see that it can pad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cohomcli.errors import InputRefused
from cohomcli.models.quiet import quiet
from cohomcli.models.wording import first_line


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
