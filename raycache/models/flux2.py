"""FLUX.2: one text encoder with a chat template, images to edit as further tokens, a VAE with a batch norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from raycache.models.family import ModelFamily
from raycache.protocol.capabilities import Task

__all__ = ["Flux2Family", "Flux2KleinFamily"]


class Flux2Family(ModelFamily):
    """FLUX.2 dev: embedded guidance, no negative prompt."""

    called = "FLUX.2"
    transformer = "Flux2Transformer2DModel"
    layers = ("num_layers", "num_single_layers")
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-image": "Flux2Pipeline", "edit": "Flux2Pipeline"}
    max_inputs = 10


class Flux2KleinFamily(Flux2Family):
    """FLUX.2 klein: few steps; the distilled one has no guidance, the base model guides by a second call per step."""

    called = "FLUX.2 klein"
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-image": "Flux2KleinPipeline", "edit": "Flux2KleinPipeline"}
    cfg_calls = True

    def guides_by_calls(self, config: Mapping[str, Any]) -> bool:
        """The distilled model ignores ``guidance_scale``."""
        return not config.get("is_distilled", False)
