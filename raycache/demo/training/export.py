"""Writes the trained parts as one folder in diffusers' layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from raycache.demo.built import MARKER, make_readable
from raycache.demo.training.autoencoder import load_autoencoder
from raycache.demo.training.drawer import Drawer
from raycache.demo.training.latents import load_latents
from raycache.demo.training.parts import LAYERS, SINGLE_LAYERS, TEXT_TOKENS
from raycache.demo.training.transformer import load_average
from raycache.demo.words import make_tokenizers

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
    from transformers import CLIPTokenizer


def export_model(out: Path, folder: Path) -> Path:
    """Write the trained parts in ``out`` to ``folder``: weights in float16, tokenizers, scheduler; replaces ``folder``.

    The model card is not part of training; an existing one in ``folder`` is kept.

    Returns:
        ``folder``, for an unchanged ``FluxPipeline.from_pretrained``.
    """
    t5, clip = make_tokenizers(TEXT_TOKENS)
    guided, plain = out / "guidance.pt", out / "all-blocks.pt"
    drawer = load_average(guided if guided.exists() else plain, LAYERS, SINGLE_LAYERS, (len(t5), len(clip)))
    _, shift, scale = load_latents(out / "latents.pt")
    card = (folder / "README.md").read_text() if (folder / "README.md").exists() else None
    shutil.rmtree(folder, ignore_errors=True)
    pipe = make_pipeline(drawer, load_autoencoder(out, torch.device("cpu")), shift, scale)
    pipe.to(torch.float16).save_pretrained(folder)
    (folder / MARKER).write_text(json.dumps({"kind": "demo", "layers": LAYERS, "single_layers": SINGLE_LAYERS}) + "\n")
    if card:
        (folder / "README.md").write_text(card)
    make_readable(folder)
    return folder


def make_pipeline(drawer: Drawer, vae: AutoencoderKL, shift: float, scale: float) -> FluxPipeline:
    """A ``FluxPipeline`` of trained parts.

    Args:
        drawer: text encoders and transformer.
        vae: the autoencoder.
        shift: mean of its latents.
        scale: one over their standard deviation.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    t5_tokenizer, clip_tokenizer = make_tokenizers(TEXT_TOKENS)
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=drawer.clip,
        tokenizer=cast("CLIPTokenizer", clip_tokenizer),  # any tokenizer works, but this class is declared
        text_encoder_2=drawer.t5,
        tokenizer_2=t5_tokenizer,
        transformer=drawer.transformer,
    )
