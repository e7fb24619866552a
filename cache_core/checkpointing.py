"""Gradient checkpointing inside a session: the cache decides outside, and only what it computes is checkpointed.

A diffusers transformer checkpoints around its blocks, and so around the cache's hooks: backward would run the hooks
again after the step is over, when what was reused has been replaced. In a session the transformer's checkpointing is
bypassed and each block's own forward is checkpointed instead. Outside of sessions nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Checkpointing", "refuse_backward"]

#: The attribute that holds the checkpointing function in diffusers' transformers.
_FUNCTION = "_gradient_checkpointing_func"


class _Forward(nn.Module):
    """A forward as a module, which is what checkpointing functions take."""

    def __init__(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self._forward, self._kwargs = forward, kwargs

    def forward(self, *args: Any) -> Any:
        return self._forward(*args, **self._kwargs)


class _PassBy:
    """Replaces a transformer's checkpointing function."""

    def __init__(self, given: Callable[..., Any], in_session: Callable[[nn.Module], bool]) -> None:
        self.given, self._in_session = given, in_session

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        block = getattr(module, "__self__", module)  # PRX passes a block's `__call__`
        return module(*args, **kwargs) if self._in_session(block) else self.given(module, *args, **kwargs)


class _Checkpointed:
    """A block's forward, checkpointed. ``checkpoints`` is the code that runs, the same in every new wrapper."""

    def __init__(self, given: Callable[..., Any], forward: Callable[..., Any]) -> None:
        self._given, self.checkpoints = given, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._given(_Forward(self.checkpoints, kwargs), *args)


class Checkpointing:
    """Checkpointing of one transformer. ``in_session``: whether a session handles a call of this module now."""

    def __init__(self, transformer: nn.Module, in_session: Callable[[nn.Module], bool]) -> None:
        self._transformer, self._in_session = transformer, in_session

    def adopt(self) -> None:
        """Replace the function that ``enable_gradient_checkpointing`` set since the last call, if any."""
        given = self._function()
        if given is not None and not isinstance(given, _PassBy):
            vars(self._transformer)[_FUNCTION] = _PassBy(given, self._in_session)

    def give_back(self) -> None:
        """Leave the transformer as it was."""
        if isinstance(given := self._function(), _PassBy):
            vars(self._transformer)[_FUNCTION] = given.given

    def inside(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A block's forward, checkpointed if the transformer's blocks are."""
        given = self._function()
        if not isinstance(given, _PassBy) or not torch.is_grad_enabled():
            return forward
        if not getattr(self._transformer, "gradient_checkpointing", False):
            return forward
        return _Checkpointed(given.given, forward)

    def _function(self) -> Callable[..., Any] | None:
        return getattr(self._transformer, _FUNCTION, None)


def refuse_backward(transformer: nn.Module) -> None:
    """Raise RuntimeError if backward calls the transformer: a step cannot be repeated after later ones."""
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{type(transformer).__name__} is called again by backward(), through checkpointing around all of it: in a "
            "cache session that would count as another step. Use transformer.enable_gradient_checkpointing(), which "
            "checkpoints block by block"
        )
