"""Whole pipelines of many families, small and with random weights, as folders that diffusers loads.

Their images and videos mean nothing, but depend on the prompt, the seed and every block, which is enough for tests of a
service. Nothing is downloaded. ``python -m raycache.testing.tiny_models FAMILY FOLDER`` makes one, for
``model.path`` of a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raycache.demo.built import build_once
from raycache.testing.tiny_models import (
    chroma,
    cogvideox,
    flux,
    flux2,
    flux3,
    hunyuan,
    ltx,
    ltx2,
    qwen_image,
    qwen_image_21,
    sana,
    stable_diffusion_3,
    wan,
    z_image,
)
from raycache.testing.tiny_models.family import Pipeline, TinyFamily

__all__ = ["TINY_FAMILIES", "TinyFamily", "build_tiny"]

_IMAGE: Mapping[str, Any] = {"height": 64, "width": 64}
_VIDEO: Mapping[str, Any] = {**_IMAGE, "num_frames": 5}
_T5: Mapping[str, Any] = {"max_sequence_length": 32}
_CHAT: Mapping[str, Any] = {"max_sequence_length": 64}
#: Guidance by a second call of the transformer in each step.
_TRUE_CFG: Mapping[str, Any] = {"negative_prompt": "grey", "true_cfg_scale": 4.0}
_CFG: Mapping[str, Any] = {"negative_prompt": "grey", "guidance_scale": 4.0}
#: LTX-2's guidance by two further calls, one with other blocks, one with video and sound separate.
_NO_MORE_CALLS: Mapping[str, Any] = {
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}


#: By name for :func:`build_tiny`.
TINY_FAMILIES: Mapping[str, TinyFamily] = MappingProxyType(
    {
        "flux": TinyFamily("FluxPipeline", flux.flux, {**_IMAGE, **_T5}),
        "flux-schnell": TinyFamily("FluxPipeline", flux.flux_schnell, {**_IMAGE, **_T5}),
        "flux-kontext": TinyFamily(
            "FluxKontextPipeline",
            flux.flux_kontext,
            # Otherwise both images are scaled to 1 megapixel.
            {**_IMAGE, **_T5, "max_area": 64 * 64, "_auto_resize": False},
            images=("image",),
        ),
        "flux-fill": TinyFamily("FluxFillPipeline", flux.flux_fill, {**_IMAGE, **_T5}, images=("image", "mask_image")),
        "qwen-image": TinyFamily("QwenImagePipeline", qwen_image.qwen_image, {**_IMAGE, **_TRUE_CFG}),
        "qwen-image-edit": TinyFamily(
            "QwenImageEditPipeline",
            qwen_image.qwen_image_edit,
            {**_IMAGE, **_TRUE_CFG},
            images=("image",),
            slow=True,
        ),
        "qwen-image-edit-plus": TinyFamily(
            "QwenImageEditPlusPipeline",
            qwen_image.qwen_image_edit_plus,
            {**_IMAGE, **_TRUE_CFG},
            images=("image",),
            slow=True,
        ),
        "qwen-image-2.1": TinyFamily(
            # With the pipeline's own cache of keys and values, a cache of blocks is not possible.
            "QwenImage21Pipeline",
            qwen_image_21.qwen_image_21,
            {**_IMAGE, **_TRUE_CFG, "use_kv_cache": False},
        ),
        "wan": TinyFamily("WanPipeline", wan.wan, {**_VIDEO, **_T5, **_CFG}),
        "wan-2.2": TinyFamily("WanPipeline", wan.wan_2_2, {**_VIDEO, **_T5, **_CFG}),
        "wan-ti2v": TinyFamily("WanPipeline", wan.wan_text_or_image_to_video, {**_VIDEO, **_T5, **_CFG}),
        "wan-i2v": TinyFamily(
            "WanImageToVideoPipeline", wan.wan_image_to_video, {**_VIDEO, **_T5, **_CFG}, images=("image",)
        ),
        "z-image": TinyFamily("ZImagePipeline", z_image.z_image, {**_IMAGE, **_CFG, **_CHAT}),
        "z-image-3-heads": TinyFamily("ZImagePipeline", z_image.z_image_3_heads, {**_IMAGE, **_CFG, **_CHAT}),
        "sd3": TinyFamily("StableDiffusion3Pipeline", stable_diffusion_3.stable_diffusion_3, {**_IMAGE, **_T5, **_CFG}),
        "flux2": TinyFamily("Flux2Pipeline", flux2.flux2, {**_IMAGE, "max_sequence_length": 256}),
        "flux2-klein": TinyFamily("Flux2KleinPipeline", flux2.flux2_klein, {**_IMAGE, **_CHAT}),
        "flux2-klein-base": TinyFamily(
            "Flux2KleinPipeline", flux2.flux2_klein_base, {**_IMAGE, **_CHAT, "guidance_scale": 4.0}
        ),
        "flux3": TinyFamily("Flux3ModularPipeline", flux3.flux3, {**_IMAGE, "negative_prompt": "grey"}),
        "flux3-distilled": TinyFamily("Flux3DistilledModularPipeline", flux3.flux3_distilled, _IMAGE),
        "ltx": TinyFamily("LTXPipeline", ltx.ltx, {**_IMAGE, **_T5, **_CFG, "num_frames": 9}),
        "hunyuan-video-1.5": TinyFamily(
            "HunyuanVideo15Pipeline", hunyuan.hunyuan_video_15, {**_VIDEO, "negative_prompt": "grey"}
        ),
        "hunyuan-image": TinyFamily(
            "HunyuanImagePipeline", hunyuan.hunyuan_image, {**_IMAGE, "negative_prompt": "grey"}
        ),
        "ltx2": TinyFamily("LTX2Pipeline", ltx2.ltx2, {**_IMAGE, **_T5, **_CFG, **_NO_MORE_CALLS, "num_frames": 9}),
        "cogvideox": TinyFamily("CogVideoXPipeline", cogvideox.cogvideox, {**_IMAGE, **_T5, **_CFG, "num_frames": 9}),
        "sana": TinyFamily("SanaPipeline", sana.sana, {**_IMAGE, **_T5, **_CFG, "use_resolution_binning": False}),
        "chroma": TinyFamily("ChromaPipeline", chroma.chroma, {**_IMAGE, **_T5, **_CFG}),
    }
)


def build_tiny(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a small pipeline of ``family`` into ``folder``, or return immediately if it exists already.

    Args:
        family: a key of :data:`TINY_FAMILIES`.
        folder: folder of the model, complete or absent; its parent is created.
        seed: of the weights; the same family and seed give the same bytes. The global torch generator is not changed.

    Returns:
        ``folder``, which ``DiffusionPipeline.from_pretrained`` loads.

    Raises:
        ValueError: there is no such family.
        FileExistsError: if ``folder`` contains something else, or a model of another family or seed.
    """
    if family not in TINY_FAMILIES:
        raise ValueError(f"unknown tiny model {family!r}; known: {', '.join(sorted(TINY_FAMILIES))}")
    record = {"kind": "tiny", "family": family, "seed": seed}
    return build_once(Path(folder), record, lambda to: _pipeline(TINY_FAMILIES[family], seed).save_pretrained(to))


def _pipeline(family: TinyFamily, seed: int) -> Pipeline:
    import torch

    from raycache.testing.tiny_models.weights import spread

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spread(family.make())
