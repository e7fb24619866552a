"""The denoisers that a pipeline calls in each step, under any attribute name, and the cache's support for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache_core import UnsupportedModelError
from cache_core.blocks import Block, find_blocks

__all__ = ["blocks_of", "denoisers_of"]

#: Attributes of diffusers' pipelines with the models called in each step. Wan 2.2 has two.
_NAMES = ("transformer", "transformer_2", "unet")


def denoisers_of(pipe: Any) -> dict[str, Any]:
    """The models that ``pipe`` calls in each step, by attribute name."""
    found = {name: getattr(pipe, name, None) for name in _NAMES}
    return {name: module for name, module in found.items() if module is not None}


def blocks_of(denoiser: Any) -> Sequence[Block]:
    """The blocks that a cache works on; empty for a denoiser that it does not know."""
    try:
        return find_blocks(denoiser)
    except (UnsupportedModelError, TypeError):
        return ()
