"""Qwen-Image: text of any length, guidance by a negative prompt in separate calls, Wan's VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from raycache.models.family import ModelFamily
from raycache.protocol.capabilities import Task

if TYPE_CHECKING:
    from raycache.protocol.job import Job

__all__ = ["QwenImage21Family", "QwenImageEditFamily", "QwenImageEditPlusFamily", "QwenImageFamily"]


class QwenImageFamily(ModelFamily):
    """Qwen-Image and its 2512 release."""

    called = "Qwen-Image"
    transformer = "QwenImageTransformer2DModel"
    quantized, kept = ("transformer_blocks",), ("img_mod", "txt_mod")
    tasks: ClassVar[Mapping[Task, str]] = {
        "text-to-image": "QwenImagePipeline",
        "image-to-image": "QwenImageImg2ImgPipeline",
        "inpaint": "QwenImageInpaintPipeline",
    }
    max_inputs, negative_prompt, true_cfg = 1, True, True

    def side_with(self, vae: Mapping[str, Any]) -> int:
        """Tokens are of 2x2 latents, and the VAE halves a side at each of its stages (three, as published)."""
        return 2 * 2 ** len(vae.get("temperal_downsample", range(3)))


class QwenImageEditFamily(QwenImageFamily):
    """One picture, which the text encoder sees, too; the pipeline brings it to one megapixel whatever was asked."""

    called = "Qwen-Image-Edit"
    tasks: ClassVar[Mapping[Task, str]] = {"edit": "QwenImageEditPipeline"}


class QwenImageEditPlusFamily(QwenImageFamily):
    """Several pictures (2509 and later)."""

    called = "Qwen-Image-Edit Plus"
    tasks: ClassVar[Mapping[Task, str]] = {"edit": "QwenImageEditPlusPipeline"}
    max_inputs = 3


class QwenImage21Family(ModelFamily):
    """Qwen-Image 2.1: one model for text and edits; a VAE that shrinks by 16."""

    called = "Qwen-Image 2.1"
    transformer = "QwenImage21Transformer2DModel"
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-image": "QwenImage21Pipeline", "edit": "QwenImage21Pipeline"}
    max_inputs, negative_prompt, true_cfg = 3, True, True

    def arguments(self, job: Job) -> Mapping[str, Any]:
        """Pictures are brought to the area of the image. What the pipeline would keep of keys and values stays
        unchanged from step to step, which a cache of blocks cannot go along with."""
        return {"use_kv_cache": False, "output_resolution": round(job.size.pixels**0.5)}
