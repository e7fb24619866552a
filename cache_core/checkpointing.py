"""Gradient checkpointing inside a session: the cache decides outside, and only what it computes is checkpointed.

A diffusers transformer checkpoints around its blocks, so around the cache's hooks: backward would run the hooks again,
when the step is over and what was reused has been replaced. In a session the transformer's checkpointing is passed by,
and each block's own forward is checkpointed instead. Outside of sessions everything is as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Checkpointing", "refuse_backward"]

#: The attribute in which diffusers' transformers keep it.
_FUNCTION = "_gradient_checkpointing_func"


class _Forward(nn.Module):
    """A forward as the module that functions for checkpointing take."""

    def __init__(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self._forward, self._kwargs = forward, kwargs

    def forward(self, *args: Any) -> Any:
        return self._forward(*args, **self._kwargs)


class _PassBy:
    """In place of a transformer's checkpointing function."""

    def __init__(self, given: Callable[..., Any], in_session: Callable[[nn.Module], bool]) -> None:
        self.given, self._in_session = given, in_session

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        block = getattr(module, "__self__", module)  # PRX gives a block's `__call__`
        return module(*args, **kwargs) if self._in_session(block) else self.given(module, *args, **kwargs)


class _Checkpointed:
    """A block's forward, checkpointed. ``checkpoints``: the code that runs, which stays while this is made anew."""

    def __init__(self, given: Callable[..., Any], forward: Callable[..., Any]) -> None:
        self._given, self.checkpoints = given, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._given(_Forward(self.checkpoints, kwargs), *args)


class Checkpointing:
    """Of one transformer. ``in_session``: whether a call of this module now is handled by a session."""

    def __init__(self, transformer: nn.Module, in_session: Callable[[nn.Module], bool]) -> None:
        self._transformer, self._in_session = transformer, in_session

    def adopt(self) -> None:
        """Put the function aside that ``enable_gradient_checkpointing`` left, if it did since the last call."""
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
    """Raise RuntimeError if backward calls the transformer: no step can be repeated when later ones were made."""
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{type(transformer).__name__} is called again by backward(), through checkpointing around all of it: in a "
            "cache session that would be another step. Use transformer.enable_gradient_checkpointing(), which "
            "checkpoints block by block"
        )
