"""FLUX.3: a modular pipeline; one text encoder with a chat template, images to edit as further tokens, FLUX.2's VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from raycache.models.family import ModelFamily
from raycache.protocol.capabilities import Task

__all__ = ["Flux3DistilledFamily", "Flux3Family"]


class Flux3Family(ModelFamily):
    """FLUX.3 before distillation: guided by a second call per step.

    Prompts are used as given: the language model that diffusers' blocks run first writes a different prompt at every
    call, so results would not be reproducible by seed, and it needs as much memory as the transformer.
    """

    called = "FLUX.3"
    transformer = "Flux3Transformer2DModel"
    layers = ("num_single_layers",)  # the others handle one kind of token each, and are computed at every step
    parts: ClassVar[Mapping[str, str]] = {
        "transformer": "config.json",
        "vae": "config.json",
        "text_encoder": "config.json",
        "tokenizer": "*",
    }
    with_weights = ("transformer", "vae", "text_encoder")
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-image": "text2image", "edit": "image_conditioned"}
    left_out = ("prompt_upsampler",)
    max_inputs = 4
    quantized = ("single_transformer_blocks", r"mode_blocks\.\w+", "txt_mode_blocks")
    negative_prompt = cfg_calls = True


class Flux3DistilledFamily(Flux3Family):
    """Distilled FLUX.3: few steps, no guidance."""

    called = "FLUX.3 distilled"
    negative_prompt = cfg_calls = False
