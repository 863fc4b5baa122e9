"""Load GGUF files through transformers, dequantised to float32."""

from __future__ import annotations

from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from typing import Any

from cohomcli.errors import InputRefused
from cohomcli.models.pretrained import Built
from cohomcli.models.quiet import quiet
from cohomcli.models.spec import ModelSource
from cohomcli.models.tokenizer import with_padding
from cohomcli.models.wording import first_line, some


def require_gguf() -> None:
    """Raise InputRefused with the extra to install unless everything that reads GGUF is there."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise InputRefused(f"reading GGUF needs {' and '.join(missing)}", 'pip install "cohom[gguf]"')


def build_gguf(source: ModelSource) -> tuple[Built, Any]:
    """The float32 model and its tokenizer.

    Raises:
        InputRefused: the extra is missing, the architecture has no reader, or the file is corrupt or incomplete.
    """
    require_gguf()
    from transformers import AutoTokenizer

    where: dict[str, Any] = {"gguf_file": source.gguf_file, "local_files_only": True}
    try:
        with quiet(), redirect_stderr(StringIO()):  # its bar ignores transformers' own switch
            tokenizer = AutoTokenizer.from_pretrained(source.location, **where)
            model, report = _load(source.location, where)
    except MemoryError:
        raise
    except Exception as error:  # corrupt files and unknown architectures fail in many ways
        raise InputRefused(f"{source.gguf_file!r} cannot be read: {first_line(error)}", "check the file") from error
    bad = sorted([*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])])
    if bad:
        raise InputRefused(f"{source.gguf_file!r} lacks {len(bad)} weights ({some(bad)})", "check the file")
    return Built(model, "causal", True), with_padding(tokenizer)


def _load(folder: str, where: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Load and dequantise, never with kernels: their blocks would be neither float32 nor local code."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **where)
    config._attn_implementation = None
    settings: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # since transformers 5.2x; before, dequantising was the only way
        settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded: tuple[Any, dict[str, Any]] = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
        **where,
        **settings,
    )
    return loaded
