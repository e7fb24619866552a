"""Families of image models that differ in little more than names: CFG in one batch, plain latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from raycache.models.family import ModelFamily
from raycache.protocol.capabilities import Task
from raycache.size import Size

if TYPE_CHECKING:
    import torch

__all__ = ["ChromaFamily", "HunyuanImageFamily", "SanaFamily", "StableDiffusion3Family", "ZImageFamily"]


class _PlainLatents(ModelFamily):
    """The pipeline's latents are the VAE's, except for scale and shift."""

    negative_prompt = True

    def latents_to_decode(self, pipe: Any, latents: torch.Tensor, size: Size) -> torch.Tensor | None:
        """The latents unchanged."""
        return latents


class StableDiffusion3Family(_PlainLatents):
    """SD3 and SD3.5: two CLIPs (77 tokens) and T5."""

    called = "Stable Diffusion 3"
    transformer = "SD3Transformer2DModel"
    text = 256
    tasks: ClassVar[Mapping[Task, str]] = {
        "text-to-image": "StableDiffusion3Pipeline",
        "image-to-image": "StableDiffusion3Img2ImgPipeline",
        "inpaint": "StableDiffusion3InpaintPipeline",
    }
    max_inputs = 1


class ZImageFamily(_PlainLatents):
    """Z-Image and Z-Image-Turbo; the transformer takes lists with one entry per image."""

    called = "Z-Image"
    transformer = "ZImageTransformer2DModel"
    layers, heads = ("n_layers",), "n_heads"
    quantized, kept = ("layers", "noise_refiner", "context_refiner"), ("adaLN_modulation",)
    tasks: ClassVar[Mapping[Task, str]] = {
        "text-to-image": "ZImagePipeline",
        "image-to-image": "ZImageImg2ImgPipeline",
        "inpaint": "ZImageInpaintPipeline",
    }
    max_inputs = 1


class ChromaFamily(ModelFamily):
    """Chroma: FLUX's blocks, only T5, guided by a negative prompt in separate calls."""

    called = "Chroma"
    transformer = "ChromaTransformer2DModel"
    layers = ("num_layers", "num_single_layers")
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-image": "ChromaPipeline"}
    negative_prompt = cfg_calls = True


class HunyuanImageFamily(ModelFamily):
    """HunyuanImage 2.1: a VAE that downscales by 32."""

    called = "HunyuanImage"
    transformer = "HunyuanImageTransformer2DModel"
    layers = ("num_layers", "num_single_layers")
    token_side = 32
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-image": "HunyuanImagePipeline"}
    negative_prompt = cfg_calls = True


class SanaFamily(ModelFamily):
    """Sana: linear attention, a VAE that downscales by 32; generates any size, not the nearest trained one."""

    called = "Sana"
    transformer = "SanaTransformer2DModel"
    token_side, text = 32, 300
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-image": "SanaPipeline"}
    negative_prompt = True
    fixed: ClassVar[Mapping[str, Any]] = {"use_resolution_binning": False}
