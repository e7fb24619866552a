"""The cache options of a request, and whether they fit the model's blocks."""

from __future__ import annotations

from cache_core.method_options import BlockCountError
from cache_core.options import CacheOptions, NoCacheOptions, check_block_count
from raycache.policy import Policy
from raycache.presets import PRESET_NAMES, preset_of
from raycache.presets.auto import GoalError, concrete
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import invalid
from raycache.protocol.job import made_steps
from raycache.protocol.schemas import GenerationRequest, ResolvedRequest

__all__ = ["cache_options", "check_cache", "misfit_of", "silent_cache"]


def check_cache(options: CacheOptions, model: Capabilities) -> None:
    """Check cache options against the model's blocks.

    Raises:
        RequestError: 400 naming the option.
    """
    try:
        check_block_count(options, model.num_blocks)
    except BlockCountError as error:
        raise invalid(f"cache.{error.field}", error.reason, [error.nearest]) from None


def silent_cache(request: ResolvedRequest, model: Capabilities) -> list[str]:
    """Warnings for legal options with which the cache can never save anything, or saves less than they suggest."""
    steps = made_steps(request.num_inference_steps, request.inputs.strength)
    why = request.cache.why_nothing_is_saved(steps, model.num_blocks)
    less = request.cache.why_less_is_saved(steps, model.num_blocks)
    return [f"cache: nothing can be saved: {reason}" for reason in why] or [f"cache: {reason}" for reason in less]


def cache_options(request: GenerationRequest, policy: Policy, model: Capabilities) -> CacheOptions:
    """The cache options of a request: its own, its preset's, or the deployment's.

    Raises:
        RequestError: 400 naming the option, or the preset.
    """
    if not model.num_blocks:
        return _uncached(request, model)
    if request.cache is None:
        return _preset(request.quality, policy, model)
    try:
        options = concrete(request.cache, policy.curve)
    except GoalError as error:
        raise invalid(error.field, error.args[0]) from None
    check_cache(options, model)
    return options


def _uncached(request: GenerationRequest, model: Capabilities) -> CacheOptions:
    """Options for a model whose blocks the cache does not know. The deployment's default has no effect on it."""
    if request.cache is not None and request.cache.type != "none":
        reason = f"the cache does not know the blocks of this model ({model.pipeline}); every step computes all of them"
        raise invalid("cache", reason, ['{"type": "none"}'])
    return NoCacheOptions()


def _preset(quality: str, policy: Policy, model: Capabilities) -> CacheOptions:
    """The options of the preset ``quality``. The client did not send them, so errors must not blame it for them."""
    try:
        options = preset_of(quality, policy.presets, policy.cache)
    except KeyError as missing:
        known = [name for name in PRESET_NAMES if name == "exact" or name in policy.presets]
        reason = f"this deployment has no preset {missing.args[0]!r}"
        raise invalid("quality", reason, [*known, "auto"]) from None
    if quality == "auto":
        check_cache(options, model)
        return options
    if misfit := misfit_of(options, model):
        raise invalid("quality", f"its preset does not fit this model: {misfit}", ["exact", "auto"])
    return options


def misfit_of(options: CacheOptions, model: Capabilities) -> str:
    """Why these options do not fit the model; empty if they do."""
    try:
        check_block_count(options, model.num_blocks)
    except BlockCountError as error:
        return f"{error.field}: {error.reason}"
    return ""
