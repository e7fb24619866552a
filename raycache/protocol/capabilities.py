"""What is known of a model: its location, its kind, and what it can generate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raycache.protocol.lora import LoraChoice
from raycache.quantization import Quantization

__all__ = ["Capabilities", "ModelKind", "ModelSource", "Task"]

#: What a request may be, told from what it brings: pictures, a mask, a number of frames.
Task = Literal["text-to-image", "image-to-image", "edit", "inpaint", "text-to-video", "image-to-video"]

ModelKind = Literal["noise", "demo", "folder", "hub"]
#: A local folder in diffusers' layout, and what it is.
ModelSource = tuple[str, ModelKind]


@dataclass(frozen=True)
class Capabilities:
    """What validation must know of a model: the ranks tell it of the one that they loaded, and a folder of its own.

    Attributes:
        kind: ``noise`` (random weights), ``demo`` (bundled), ``folder`` or ``hub``.
        num_blocks: transformer blocks over all stacks.
        num_heads: attention heads.
        text_tokens: tokens every prompt is padded to.
        pipeline: class name of the pipeline.
        token_side: pixels a side of what the transformer reads as one image token.
        tasks: that the family can do.
        negative_prompt: it reads one.
        true_cfg: ``true_cfg_scale`` guides by a negative prompt, with two transformer calls a step.
        cfg_calls: ``guidance_scale`` above 1 guides by the negative prompt with calls of its own.
        max_inputs: pictures that a request may bring.
        frame_step: 0 where images come out; else a video's number of frames is a multiple of it, plus one.
        fps: frames a second that the model was trained at; 0 where images come out.
        previews: latents can be decoded on the way.
        uneven: tokens and heads need not divide among the ranks.
        loras: that requests may name, each with its default scale.
        quantization: of the transformers' blocks.
    """

    kind: ModelKind
    num_blocks: int
    num_heads: int
    text_tokens: int
    pipeline: str
    token_side: int
    tasks: tuple[Task, ...] = ("text-to-image",)
    negative_prompt: bool = False
    true_cfg: bool = False
    cfg_calls: bool = False
    max_inputs: int = 0
    frame_step: int = 0
    fps: float = 0.0
    previews: bool = True
    uneven: bool = False
    loras: tuple[LoraChoice, ...] = ()
    quantization: Quantization = "none"

    def calls_per_step(self, guidance_scale: float, true_cfg_scale: float) -> int:
        """Of the transformer, with this guidance."""
        return 2 if true_cfg_scale > 1 or (self.cfg_calls and guidance_scale > 1) else 1
