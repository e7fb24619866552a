"""How many denoising steps a call of a diffusers pipeline makes, from its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["steps_of"]


def steps_of(call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Steps of ``call(*args, **kwargs)``; 0 if its arguments do not say (a modular pipeline's defaults).

    A list of ``sigmas`` or ``timesteps`` has one entry per step; with a ``strength`` the first steps are left out, as
    in diffusers' image-to-image pipelines.
    """
    try:
        bound = inspect.signature(call).bind_partial(*args, **kwargs)
    except TypeError:  # the pipeline itself will say what is wrong with its arguments
        return 0
    bound.apply_defaults()
    given = {**bound.arguments, **bound.arguments.get("kwargs", {})}
    for name in ("sigmas", "timesteps"):
        if (listed := given.get(name)) is not None:
            return len(listed)
    steps, strength = given.get("num_inference_steps"), given.get("strength")
    if not isinstance(steps, int):
        return 0
    if not isinstance(strength, int | float):
        return steps
    return steps - int(max(steps - min(steps * strength, steps), 0))
