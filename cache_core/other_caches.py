"""Detects another cache on the same transformer.

Two caches stack without an error: one reuses what the other did not compute, and each reports as if it were alone. So
attaching the cache checks for others, and every session checks again, since one may have been added in between.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from cache_core.walking import registries
from cache_core.wrapped import wrapped_forwards

__all__ = ["AnotherCacheError", "check_no_other_cache"]

#: diffusers' caches, by the module in which their hooks are defined.
_DIFFUSERS = {
    "first_block_cache": "FirstBlockCache",
    "faster_cache": "FasterCache",
    "mag_cache": "MagCache",
    "pyramid_attention_broadcast": "PyramidAttentionBroadcast",
    "sea_cache": "SeaCache",
    "taylorseer_cache": "TaylorSeerCache",
    "text_kv_cache": "TextKVCache",
}


class AnotherCacheError(RuntimeError):
    """Another cache is on this transformer; the message names it and says how to remove it."""


def check_no_other_cache(transformer: nn.Module) -> None:
    """Refuse a transformer that has a cache of diffusers, ParaAttention or cache-dit.

    Args:
        transformer: a diffusers transformer, not compiled as a whole.

    Raises:
        AnotherCacheError: it has one.
    """
    for other, remedy in _others(transformer):
        raise AnotherCacheError(
            f"{type(transformer).__name__} has another cache already, {other}: together each would reuse what the "
            f"other did not compute. {remedy}"
        )


def _others(transformer: nn.Module) -> Iterator[tuple[str, str]]:
    for module, registry in registries(transformer):
        for hook in registry.hooks.values():
            package, _, kind = type(hook).__module__.rpartition(".")
            if package == "diffusers.hooks" and kind in _DIFFUSERS:
                name = next(name for name, own in transformer.named_modules() if own is module)
                where = f" (a hook on {name})" if name else ""
                yield f"diffusers' {_DIFFUSERS[kind]}{where}", "Call transformer.disable_cache() first"
    if getattr(transformer, "_cache_config", None) is not None:
        kind = type(transformer._cache_config).__name__
        yield f"diffusers' own ({kind})", "Call transformer.disable_cache() first"
    # Its forward is no evidence: that of FLUX stays patched after cache_dit.disable_cache.
    if {"_is_cached", "_context_manager"} <= transformer.__dict__.keys():
        yield "cache-dit's", "Call cache_dit.disable_cache(...) on what it was enabled on first"
    if _made_by("para_attn.first_block_cache", transformer):
        yield "ParaAttention's first-block cache", "It cannot be removed: load the transformer again without it"


def _made_by(package: str, transformer: nn.Module) -> bool:
    """Whether one of the transformer's wrapped forwards comes from ``package``."""
    # Not __module__, which functools.wraps copies from the wrapped function; globals are those of the wrapper's file.
    names = (getattr(function, "__globals__", {}).get("__name__") for function, _ in wrapped_forwards(transformer))
    return any(str(name).startswith(package) for name in names)
