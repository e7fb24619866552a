"""Where a transformer's blocks are: the module lists that hold them, and the block inside its wrappers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from cache_core.block_specs import BLOCKS, STACKS, WRAPPERS

__all__ = ["block_modules", "stacks", "without_wrapper"]


def block_modules(transformer: nn.Module) -> Iterator[nn.Module]:
    """The blocks' modules in execution order."""
    for _, stack in stacks(transformer):
        yield from map(without_wrapper, stack)


def stacks(transformer: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """The lists that hold the blocks, by name."""
    for name, stack in transformer.named_children():
        if name in STACKS and isinstance(stack, nn.ModuleList):
            yield name, stack


def without_wrapper(module: nn.Module) -> nn.Module:
    """The block inside its wrapper (an adapter, ``torch.compile(block)``, FSDP); ``module`` itself if there is none.

    The wrapper itself runs in every step; diffusers' own modules are blocks, except those known to be wrappers.
    """
    kind = type(module)
    diffusers_own = kind.__module__.startswith("diffusers.") and kind.__name__ not in WRAPPERS
    if kind.__name__ in BLOCKS or diffusers_own:
        return module
    inner = [found for child in module.children() if type(found := without_wrapper(child)).__name__ in BLOCKS]
    return inner[0] if len(inner) == 1 else module
