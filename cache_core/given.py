"""The arguments of a transformer call, recorded before anything around its forward splits them.

The cache's own hook is the innermost and sees only a rank's share of the text if context parallelism splits at the root
(diffusers' hook on FLUX, ParaAttention's forward). The shares of two prompts may be equal on one rank, where they are
only padding, and differ on another. torch's own hooks on the module run before every wrapper of its forward.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from torch import nn

from cache_core.calls import CallInputs, call_inputs
from cache_core.compiled import untraced
from cache_core.ownership import innermost

__all__ = ["Given", "given_to"]

_GIVEN: ContextVar[dict[nn.Module, CallInputs]] = ContextVar("cache_core_given", default={})  # noqa: B039 (never changed)


class Given:
    """Records the calls of one module while a session is open on it."""

    def __init__(self, module: nn.Module) -> None:
        self._handles = (
            module.register_forward_pre_hook(_note, prepend=True, with_kwargs=True),
            module.register_forward_hook(_drop, always_call=True),
        )

    def remove(self) -> None:
        """Leave the module as it was."""
        for handle in self._handles:
            handle.remove()


def given_to(module: nn.Module) -> CallInputs | None:
    """The arguments of a module's running call; None = its forward was called directly, not through the module."""
    return _GIVEN.get().get(module)


# Module-level functions, not methods: a copied or pickled transformer keeps its torch hooks.
@untraced
def _note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if innermost(module) is not None:
        _GIVEN.set(_GIVEN.get() | {module: call_inputs(module, args, kwargs)})


@untraced
def _drop(module: nn.Module, *_: Any) -> None:
    _GIVEN.set({other: inputs for other, inputs in _GIVEN.get().items() if other is not module})
