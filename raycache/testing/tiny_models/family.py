"""The description of one kind of tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["Pipeline", "TinyFamily"]

#: Any of diffusers' pipelines: its top-level names are untyped.
Pipeline: TypeAlias = Any


@dataclass(frozen=True)
class TinyFamily:
    """One kind of pipeline.

    Attributes:
        pipeline: class in ``model_index.json``.
        make: builds it on the CPU in float32; its weights are randomized afterwards.
        ask: arguments of the pipeline's call for a small request, other than prompt, steps and generator.
        images: required arguments that take an image of 64x64 pixels.
        slow: a request takes seconds with any arguments.
    """

    pipeline: str
    make: Callable[[], Pipeline]
    ask: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    slow: bool = False
