"""Pipelines that share components, and therefore a transformer; and functions for step callbacks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxPipeline

from tests.helpers.flux_pipe import draw

__all__ = ["Callback", "at_step", "encoding_alone", "sharing", "square"]

Callback = Callable[..., dict[str, Any]]


def square(pipe: FluxPipeline, **arguments: Any) -> torch.Tensor:
    return draw(pipe, prompt="a blue square", generator=torch.Generator().manual_seed(5), **arguments)


def sharing(pipe: FluxPipeline) -> FluxPipeline:
    """A second pipeline on the same components, except the scheduler, which counts steps."""
    components = pipe.components | {"scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)}
    second = FluxPipeline(**components)
    second.set_progress_bar_config(disable=True)
    return second


_ENCODING = threading.Lock()


def encoding_alone(pipe: FluxPipeline) -> FluxPipeline:
    """Serialize calls of shared tokenizers and text encoders, which are not thread-safe; unrelated to the cache."""
    encode = pipe.encode_prompt

    def one_by_one(*args: Any, **kwargs: Any) -> Any:
        with _ENCODING:
            return encode(*args, **kwargs)

    pipe.encode_prompt = one_by_one
    return pipe


def at_step(what: Callable[[], Any], step: int = 3) -> Callback:
    """A step callback that calls ``what`` once."""

    def callback(pipe: Any, now: int, time: Any, state: dict[str, Any]) -> dict[str, Any]:
        if now == step:
            what()
        return {}

    return callback
