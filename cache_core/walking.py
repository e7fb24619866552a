"""Walks over all modules of a transformer: each session makes several, and ``named_modules`` takes milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

from diffusers.hooks import HookRegistry
from torch import nn

__all__ = ["all_modules", "registries"]


def all_modules(module: nn.Module) -> list[nn.Module]:
    """The modules of ``module.modules()``, each once, itself first, in the same order."""
    found: dict[nn.Module, None] = {}
    waiting = [module]
    while waiting:
        own = waiting.pop()
        if own not in found:
            found[own] = None
            waiting += [child for child in reversed(own._modules.values()) if child is not None]
    return list(found)


def registries(module: nn.Module) -> Iterator[tuple[nn.Module, HookRegistry]]:
    """The modules with diffusers' hooks in and under ``module``."""
    for own in all_modules(module):
        registry = own.__dict__.get("_diffusers_hook")  # attribute access on the module is slow if it has none
        if registry is not None:
            yield own, registry
