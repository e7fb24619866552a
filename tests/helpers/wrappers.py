"""Functions around a transformer's or a block's forward, as other code installs them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module

__all__ = ["WRAPPERS", "by_turns"]


def _closure(transformer: Any) -> None:
    """As ParaAttention and its repair do."""
    original_forward = transformer.forward
    transformer.forward = lambda *args, **kwargs: original_forward(*args, **kwargs)


def _method(transformer: Any) -> None:
    original_forward = transformer.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original_forward(*args, **kwargs)

    transformer.forward = forward.__get__(transformer)


def _wraps(transformer: Any) -> None:
    """A typical patch by a user."""
    inner = transformer.forward

    @functools.wraps(inner)
    def timed(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    transformer.forward = timed


def _accelerate(transformer: Any) -> None:
    """As accelerate's offloading does."""
    add_hook_to_module(transformer, ModelHook())


def _partial(transformer: Any) -> None:
    transformer.forward = functools.partial(transformer.forward)


def _kept(transformer: Any) -> None:
    """A quick patch, one of whose variables is set at the first call."""
    before, calls = transformer.forward, None
    del calls

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls = 1
        return before(*args, **kwargs)

    transformer.forward = forward


#: Ways to put a function around a transformer's forward.
WRAPPERS: dict[str, Callable[[Any], None]] = {
    "closure": _closure,
    "method": _method,
    "wraps": _wraps,
    "accelerate": _accelerate,
    "partial": _partial,
    "kept": _kept,
}


def by_turns(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A FLUX block that returns one of two buffers, as a double-buffered engine does."""
    buffers: list[torch.Tensor] = []

    def patched(*args: Any, **kwargs: Any) -> Any:
        encoder, hidden = forward(*args, **kwargs)
        if len(buffers) < 2:
            buffers.append(torch.empty_like(hidden))
        buffers.reverse()
        return encoder, buffers[0].copy_(hidden)

    return patched
