"""What is known about a model: its location, its kind, and what it can generate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raycache.protocol.lora import LoraChoice
from raycache.quantization import Quantization

__all__ = ["Capabilities", "ModelKind", "ModelSource", "Task"]

#: The task of a request, determined by its inputs: images, a mask, a number of frames.
Task = Literal["text-to-image", "image-to-image", "edit", "inpaint", "text-to-video", "image-to-video"]

ModelKind = Literal["noise", "demo", "folder", "hub"]
#: A local folder in diffusers' layout, and its kind.
ModelSource = tuple[str, ModelKind]


@dataclass(frozen=True)
class Capabilities:
    """What validation needs to know about a model: reported by ranks that loaded it, or read from a folder.

    Attributes:
        kind: ``noise`` (random weights), ``demo`` (bundled), ``folder`` or ``hub``.
        num_blocks: transformer blocks over all stacks.
        num_heads: attention heads.
        text_tokens: tokens that every prompt is padded to.
        pipeline: class name of the pipeline.
        token_side: side in pixels of one image token of the transformer.
        tasks: tasks that the family supports.
        negative_prompt: it takes a negative prompt.
        true_cfg: ``true_cfg_scale`` guides by a negative prompt, with two transformer calls per step.
        cfg_calls: ``guidance_scale`` above 1 guides by the negative prompt with separate calls.
        max_inputs: maximum input images of a request.
        frame_step: 0 for image models; else a video's number of frames is a multiple of it, plus one.
        fps: frames per second of the model's training; 0 for image models.
        previews: latents can be decoded between steps.
        uneven: tokens and heads need not divide among the ranks.
        loras: LoRAs that requests may name, each with its default scale.
        quantization: quantization of the transformers' blocks.
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
        """Transformer calls per step with this guidance."""
        return 2 if true_cfg_scale > 1 or (self.cfg_calls and guidance_scale > 1) else 1
