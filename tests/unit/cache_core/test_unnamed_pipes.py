"""Guidance in two calls that no ``cache_context`` names, through the pipelines that do it: two branches each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from cache_core import apply_cache_on_pipe, cache_reports
from tests.helpers.flux_pipe import load
from tests.helpers.tiny_transformers import build

STEPS = 8
IMAGE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
Drawn = tuple[Any, dict[str, Any]]


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _flux(cls: str, **arguments: Any) -> Callable[[Path], Drawn]:
    def make(folder: Path) -> Drawn:
        parts = dict(load(folder).components)
        if "ControlNet" in cls:
            config = dict(parts["transformer"].config) | {"num_layers": 1, "num_single_layers": 1}
            parts["controlnet"] = diffusers.FluxControlNetModel.from_config(config).eval()
        words = {"prompt": "a red circle", "negative_prompt": "blue square", "true_cfg_scale": 2.0}
        size = {"height": 64, "width": 64, "max_sequence_length": 16}
        return getattr(diffusers, cls)(**parts), words | size | arguments

    return make


class _Autoencoder(torch.nn.Module):
    """Enough of one for a pipeline that is given latents and returns latents."""

    dtype, device = torch.float32, torch.device("cpu")
    temperal_downsample = (True, True, False)
    config = SimpleNamespace(block_out_channels=[1, 1, 1, 1], scaling_factor=1.0, z_dim=4)


def _wan(_: Path) -> Drawn:
    pipe = diffusers.WanVideoToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=_Autoencoder(), transformer=build("WanTransformer3DModel"),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    )  # fmt: skip
    words = {"prompt_embeds": _noise(1, 1, 6, 16), "negative_prompt_embeds": _noise(2, 1, 6, 16)}
    return pipe, words | {"latents": _noise(3, 1, 4, 2, 8, 8), "height": 64, "width": 64}


def _kandinsky(_: Path) -> Drawn:
    transformer = build("Kandinsky5Transformer3DModel")
    pipe = diffusers.Kandinsky5T2IPipeline(
        transformer=transformer, vae=_Autoencoder(), text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    pipe.resolutions = [(64, 64)]  # its own are a megapixel and more
    config = transformer.config
    words: dict[str, Any] = {"height": 64, "width": 64}
    for seed, sign in enumerate(("", "negative_")):
        words[f"{sign}prompt_embeds_qwen"] = _noise(seed, 1, 6, config.in_text_dim).double()
        words[f"{sign}prompt_embeds_clip"] = _noise(seed + 2, 1, config.in_text_dim2).double()
        words[f"{sign}prompt_cu_seqlens"] = torch.tensor([0, 6])
    return pipe, words


#: Pipelines by how the two calls are made; Kandinsky converts its text at every call, and lets go of it.
PIPES: dict[str, Callable[[Path], Drawn]] = {
    "FluxImg2ImgPipeline": _flux("FluxImg2ImgPipeline", image=IMAGE, strength=1.0),
    "FluxInpaintPipeline": _flux("FluxInpaintPipeline", image=IMAGE, mask_image=IMAGE.convert("L"), strength=1.0),
    "FluxKontextInpaintPipeline": _flux(
        "FluxKontextInpaintPipeline", image=IMAGE, mask_image=IMAGE.convert("L"), strength=1.0, max_area=64 * 64,
        _auto_resize=False,
    ),
    "FluxControlNetPipeline": _flux("FluxControlNetPipeline", control_image=IMAGE),
    "WanVideoToVideoPipeline": _wan,
    "Kandinsky5T2IPipeline": _kandinsky,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPES)
def test_prompt_and_negative_prompt_are_two_branches(name: str, folder: Path):
    pipe, arguments = PIPES[name](folder)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            return pipe(
                **arguments, num_inference_steps=STEPS, generator=generator, output_type="latent", return_dict=False
            )[0]

    plain = draw()
    apply_cache_on_pipe(pipe, "FBCache", residual_diff_threshold=1e-9, warmup_steps=2)
    assert torch.equal(draw(), plain)  # judged by itself, no branch ever stands still; by the other, at the first step
    steps = cache_reports(pipe)["transformer"].steps
    assert [(step.branch, step.step) for step in steps] == [
        (branch, k) for k in range(len(steps) // 2) for branch in ("default", "default#2")
    ]
    assert len(steps) >= STEPS
