"""FLUX.1: packed latents, two text encoders (T5 limits the prompt's length), embedded guidance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from raycache.models.family import ModelFamily, tokens_told
from raycache.protocol.capabilities import Task
from raycache.size import Size

if TYPE_CHECKING:
    import torch

    from raycache.protocol.job import Job

__all__ = ["FluxFamily", "FluxFillFamily", "FluxKontextFamily"]

#: The maximum of FluxPipeline.
_MOST_TEXT_TOKENS = 512


class FluxFamily(ModelFamily):
    """FLUX.1 dev and schnell, run with diffusers' ``FluxPipeline`` and its variants for other tasks."""

    called = "FLUX"
    transformer = "FluxTransformer2DModel"
    parts: ClassVar[Mapping[str, str]] = {
        "transformer": "config.json",
        "vae": "config.json",
        "text_encoder": "config.json",
        "text_encoder_2": "config.json",
        "tokenizer": "*",
        "tokenizer_2": "*",
        "scheduler": "scheduler_config.json",
    }
    with_weights = ("transformer", "vae", "text_encoder", "text_encoder_2")
    layers = ("num_layers", "num_single_layers")
    tasks: ClassVar[Mapping[Task, str]] = {
        "text-to-image": "FluxPipeline",
        "image-to-image": "FluxImg2ImgPipeline",
        "inpaint": "FluxInpaintPipeline",
    }
    max_inputs, negative_prompt, true_cfg = 1, True, True

    def text_tokens_told(self, folder: Path) -> int:
        """As :meth:`text_tokens`, from T5's tokenizer."""
        return tokens_told(folder, "tokenizer_2", _MOST_TEXT_TOKENS)

    def text_tokens(self, pipe: Any) -> int:
        """The length of T5's tokenizer, up to the pipeline's maximum."""
        return min(int(pipe.tokenizer_2.model_max_length), _MOST_TEXT_TOKENS)

    def prompt_warnings(self, pipe: Any, prompt: str, text_tokens: int) -> list[str]:
        """A warning if T5 reads only the beginning."""
        tokens = len(pipe.tokenizer_2(prompt, verbose=False).input_ids)
        if tokens <= text_tokens:
            return []
        return [f"prompt: {tokens} tokens, but this model reads only the first {text_tokens}"]

    def latents_to_decode(self, pipe: Any, latents: torch.Tensor, size: Size) -> torch.Tensor:
        """[images, tokens, channels] to [images, channels / 4, height / 8, width / 8]."""
        unpacked: torch.Tensor = pipe._unpack_latents(latents, size.height, size.width, pipe.vae_scale_factor)
        return unpacked


class FluxKontextFamily(FluxFamily):
    """FLUX.1 Kontext: an input image and an instruction; its tokens follow those of the generated image."""

    called = "FLUX Kontext"
    tasks: ClassVar[Mapping[Task, str]] = {
        "text-to-image": "FluxKontextPipeline",
        "edit": "FluxKontextPipeline",
        "inpaint": "FluxKontextInpaintPipeline",
    }

    def arguments(self, job: Job) -> Mapping[str, Any]:
        """Keep the requested size: the pipeline would choose another one with the area of its training."""
        return {"max_area": job.size.pixels, "_auto_resize": False}


class FluxFillFamily(FluxFamily):
    """FLUX.1 Fill: the masked input image as further channels of the latents."""

    called = "FLUX Fill"
    tasks: ClassVar[Mapping[Task, str]] = {"inpaint": "FluxFillPipeline"}
    negative_prompt = true_cfg = False
