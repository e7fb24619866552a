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
from raycache.worker.remote_layers import RemoteLayers

__all__ = ["OneEncodes", "remember_prompts"]


@dataclass(frozen=True)
class OneEncodes:
    """Rank 0 of ``group`` encodes with ``encoders`` for all.

    Attributes:
        device: that this rank computes on.
        layers: those of the encoders that other ranks hold; None: rank 0 has all.
    """

    encoders: TextEncoders
    group: dist.ProcessGroup | None
    device: torch.device
    layers: RemoteLayers | None = None

    def encoded(self, encode: Callable[[], Any]) -> Any:
        """What ``encode`` returns on rank 0, on every rank. All ranks must call it.

        Raises:
            FirstFailed: on all ranks, if ``encode`` raised or a rank has no memory for its result.
        """
        if self.layers is None:
            return from_first(encode, self.group, self.device)
        if dist.get_rank(self.group):
            self.layers.serve()
        return from_first(partial(self._with_layers, self.layers, encode), self.group, self.device)

    @staticmethod
    def _with_layers(layers: RemoteLayers, encode: Callable[[], Any]) -> Any:
        try:
            return encode()
        finally:
            layers.release()


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

        made, known = here() if one is None else one.encoded(here)
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
