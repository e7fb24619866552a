"""A pipeline's own ``encode_prompt`` with a cache: equal arguments are encoded only once.

If one rank encodes for all, only it has the cache, and it sends the result: ranks need not agree on anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from raycache.models.text_encoders import TextEncoders
from raycache.worker.exchange import from_first
from raycache.worker.prompt_cache import PromptCache

__all__ = ["OneEncodes", "remember_prompts"]


@dataclass(frozen=True)
class OneEncodes:
    """Rank 0 of ``group`` encodes with ``encoders`` for all; ``device``: that this rank computes on."""

    encoders: TextEncoders
    group: dist.ProcessGroup | None
    device: torch.device


def remember_prompts(pipe: Any, prompts: PromptCache, one: OneEncodes | None = None) -> Callable[[], bool]:
    """Give ``pipe``, a job's own view, an ``encode_prompt`` that looks in ``prompts`` first.

    Args:
        one: the rank that encodes for all; None: every rank encodes for itself.

    Returns:
        A function: whether everything encoded since then was in the cache.
    """
    encode, asked = getattr(pipe, "encode_prompt", None), list[bool]()
    if encode is None:
        return lambda: False
    if one is not None:
        encode = partial(one.encoders.encode, pipe)
        for name, stand_in in one.encoders.stand_ins.items():
            object.__setattr__(pipe, name, stand_in)

    def remembered(*args: Any, **kwargs: Any) -> Any:
        def here() -> tuple[Any, bool]:
            key = type(pipe).__name__, _key(args), _key(kwargs)
            return prompts.encoded(key, lambda: encode(*args, **kwargs))

        made, known = here() if one is None else from_first(here, one.group, one.device)
        asked.append(known)
        return _copied(made)

    object.__setattr__(pipe, "encode_prompt", remembered)
    return lambda: bool(asked) and all(asked)


def _key(value: Any) -> Hashable:
    """A key, equal for equal arguments. Images and tensors count by their content: edits encode them, too."""
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float32).contiguous().numpy()
    if isinstance(value, Image.Image):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return tuple((name, _key(value[name])) for name in sorted(value))
    if isinstance(value, list | tuple):
        return tuple(_key(each) for each in value)
    return value if isinstance(value, str | int | float | None) else repr(value)


def _copied(value: Any) -> Any:
    """New lists of the same tensors: pipelines modify theirs in place."""
    if isinstance(value, list):
        return [_copied(each) for each in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_copied(each) for each in value)
    return value
