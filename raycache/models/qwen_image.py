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
        """A token is 2x2 latents, and the VAE halves each side at each of its stages (three, as published)."""
        return 2 * 2 ** len(vae.get("temperal_downsample", range(3)))


class QwenImageEditFamily(QwenImageFamily):
    """One input image, which the text encoder also gets; the pipeline always scales it to one megapixel."""

    called = "Qwen-Image-Edit"
    tasks: ClassVar[Mapping[Task, str]] = {"edit": "QwenImageEditPipeline"}


class QwenImageEditPlusFamily(QwenImageFamily):
    """Several input images (2509 and later)."""

    called = "Qwen-Image-Edit Plus"
    tasks: ClassVar[Mapping[Task, str]] = {"edit": "QwenImageEditPlusPipeline"}
    max_inputs = 3


class QwenImage21Family(ModelFamily):
    """Qwen-Image 2.1: one model for text and edits; a VAE that downscales by 16."""

    called = "Qwen-Image 2.1"
    transformer = "QwenImage21Transformer2DModel"
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-image": "QwenImage21Pipeline", "edit": "QwenImage21Pipeline"}
    max_inputs, negative_prompt, true_cfg = 3, True, True

    def arguments(self, job: Job) -> Mapping[str, Any]:
        """Input images are scaled to the area of the image. The pipeline's cache of keys and values stays unchanged
        from step to step, so it does not work together with a cache of blocks."""
        return {"use_kv_cache": False, "output_resolution": round(job.size.pixels**0.5)}
