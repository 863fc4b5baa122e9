"""Hooks that read or replace what flows into and out of a model's modules while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Change = Callable[[Tensor], Tensor | None]


@contextmanager
def on_input(module: nn.Module, change: Change) -> Iterator[None]:
    """Inside, `change` sees the module's first argument and may return another."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = None if args else next(iter(kwargs))
        value: Tensor = args[0] if key is None else kwargs[key]
        found = change(value)
        if found is None:
            return None
        return ((found, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: found})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_output(module: nn.Module, change: Change) -> Iterator[None]:
    """Inside, `change` sees the module's output tensor and may return another."""
    handle = module.register_forward_hook(lambda _module, _args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def interpolated(model: Any, start: Tensor, end: Tensor, share: float) -> Iterator[None]:
    """Inside, token embeddings are `start` + share (`end` - `start`), whatever ids the model is given."""
    with on_output(model.get_input_embeddings(), lambda _: start + share * (end - start)):
        yield


def embedded(model: Any, ids: Tensor) -> Tensor:
    """The token embeddings (B, T, d) of `ids`."""
    with torch.no_grad():
        vectors: Tensor = model.get_input_embeddings()(ids)
    return vectors


@contextmanager
def all_of(contexts: list[Any]) -> Iterator[None]:
    """Several hooks at once."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
