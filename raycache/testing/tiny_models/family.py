"""What is said of one kind of tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["Pipeline", "TinyFamily"]

#: Any of diffusers', which does not tell the types of what can be imported from its top.
Pipeline: TypeAlias = Any


@dataclass(frozen=True)
class TinyFamily:
    """One kind of pipeline.

    Attributes:
        pipeline: class that ``model_index.json`` names.
        make: builds it on the CPU in float32; its weights are drawn anew afterwards.
        ask: arguments of a small request besides prompt, steps and generator, as the pipeline's call takes them.
        pictures: arguments that take a picture of 64x64 pixels, which the request cannot do without.
        slow: a request takes seconds whatever it asks for; ``ask`` cannot help it.
    """

    pipeline: str
    make: Callable[[], Pipeline]
    ask: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()
    slow: bool = False
