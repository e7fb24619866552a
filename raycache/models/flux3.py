"""FLUX.3: a modular pipeline; one text encoder that reads chat, pictures to edit as further tokens, FLUX.2's VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from raycache.models.family import ModelFamily
from raycache.protocol.capabilities import Task

__all__ = ["Flux3DistilledFamily", "Flux3Family"]


class Flux3Family(ModelFamily):
    """FLUX.3 before it is distilled: guided by a second call in each step.

    Prompts are drawn as they are given: the language model that diffusers' blocks put before them writes another prompt
    at every call, so that a seed would not say what comes, and needs as much memory as the transformer.
    """

    called = "FLUX.3"
    transformer = "Flux3Transformer2DModel"
    layers = ("num_single_layers",)  # the others are for one kind of token each, and computed at every step
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
    """FLUX.3 for few steps: no guidance."""

    called = "FLUX.3 distilled"
    negative_prompt = cfg_calls = False
