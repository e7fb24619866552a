"""Pipelines that share components, and so their transformer; and what runs in a step callback."""

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
    """A second pipeline on the same components, but for the scheduler, which counts steps."""
    components = pipe.components | {"scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)}
    second = FluxPipeline(**components)
    second.set_progress_bar_config(disable=True)
    return second


_ENCODING = threading.Lock()


def encoding_alone(pipe: FluxPipeline) -> FluxPipeline:
    """Tokenizers and text encoders that threads share do not bear it to be called by two at once; no cache in sight."""
    encode = pipe.encode_prompt

    def one_by_one(*args: Any, **kwargs: Any) -> Any:
        with _ENCODING:
            return encode(*args, **kwargs)

    pipe.encode_prompt = one_by_one
    return pipe


def at_step(what: Callable[[], Any], step: int = 3) -> Callback:
    """A step callback that does something once."""

    def callback(pipe: Any, now: int, time: Any, state: dict[str, Any]) -> dict[str, Any]:
        if now == step:
            what()
        return {}

    return callback
