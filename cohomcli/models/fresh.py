"""New models with random weights from a configuration, for training from nothing."""

from __future__ import annotations

from typing import Any, Literal

from cohomcli.errors import UsageError
from cohomcli.models.own import own_class, register_own
from cohomcli.models.quiet import quiet
from cohomcli.models.spec import LoadOptions, ModelSource
from cohomcli.models.tokenizer import find_tokenizer
from cohomcli.models.wording import first_line
from cohomcli.registry import did_you_mean

Head = Literal["causal", "masked"]
_VOCABULARIES: dict[str, str] = {"causal": "tiny-gpt", "masked": "tiny-bert"}  # whose tokenizer, if none is named


def build_new(
    settings: dict[str, Any], options: LoadOptions, task: str, vocabulary: int | None = None
) -> tuple[Any, Any, Head]:
    """(tokenizer, model on the CPU, head) for the configuration `settings`; random weights are torch's to seed.

    With `vocabulary` the model knows so many tokens, of which 0 is padding, and there is no tokenizer.

    Raises:
        UsageError: an unknown type, values that fit no model, or a task the type has no head for.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(settings.pop("model_type", ""))
    register_own(kind)
    if kind not in CONFIG_MAPPING:
        raise UsageError(f"training.architecture: unknown model_type {kind!r}", did_you_mean(kind, CONFIG_MAPPING))
    names: dict[Head, Any] = {
        "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }
    with quiet():
        own = own_class(CONFIG_MAPPING[kind](**_causal(kind, settings, task)))
    head = own[1] or "masked" if own else _head(kind, names, task)
    tokenizer = _tokenizer(options, head) if vocabulary is None else None
    ids = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    if tokenizer is not None:
        ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        ids |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    try:
        with quiet():
            config = CONFIG_MAPPING[kind](**(ids | _causal(kind, settings, task)))
            model = (own[0] if own else getattr(transformers, names[head][kind]))(config)
    except Exception as error:  # every architecture trips over impossible values in its own way
        raise UsageError(f"training.architecture: no {kind} model can be built: {first_line(error)}") from error
    return tokenizer, model, head


def _causal(kind: str, settings: dict[str, Any], task: str) -> dict[str, Any]:
    """Our cohomological transformer reads either way, and its configuration says which."""
    if kind == "cohomological_transformer" and task != "auto":
        return {**settings, "causal": task == "causal"}
    return settings


def _head(kind: str, names: dict[Head, Any], task: str) -> Head:
    """The head for `task`; "auto" prefers masked where a family has both, as only encoders have masked heads."""
    has: list[Head] = [head for head in ("masked", "causal") if kind in names[head]]  # type: ignore[misc]
    for head in has:
        if task in ("auto", head):
            return head
    raise UsageError(f"training.architecture: {kind} has no {task} language-modelling head", "choose another objective")


def _tokenizer(options: LoadOptions, head: Head) -> Any:
    from dataclasses import replace

    named = options if options.tokenizer else replace(options, tokenizer=_VOCABULARIES[head])
    return find_tokenizer(ModelSource("new", "new", "random weights"), None, None, named).tokenizer
