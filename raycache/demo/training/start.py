"""Trains on from a finished model: puts its parts where the training looks for those it made itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from raycache.demo.evaluate import load
from raycache.demo.training.drawer import Drawer
from raycache.demo.training.parts import LAYERS, SINGLE_LAYERS

if TYPE_CHECKING:
    from transformers import CLIPTextModel, T5EncoderModel


def take_parts(folder: Path, out: Path) -> tuple[Drawer, tuple[float, float]]:
    """Write the autoencoder of the model in ``folder`` to ``out / "autoencoder.pt"``, and return the rest.

    Latents of that autoencoder must be shifted and scaled as the model's were: it knows no others.

    Args:
        folder: a model that :func:`~raycache.demo.training.export.export_model` wrote, of ``LAYERS`` +
            ``SINGLE_LAYERS`` blocks or of fewer, which the training then grows.
        out: folder of the checkpoints.

    Returns:
        Text encoders and transformer; then shift and scale of the latents.

    Raises:
        ValueError: for a model of more blocks.
    """
    pipe = load(str(folder))
    config = pipe.transformer.config
    layers, single_layers = config["num_layers"], config["num_single_layers"]
    if layers > LAYERS or single_layers > SINGLE_LAYERS:
        raise ValueError(
            f"{folder} has {layers} + {single_layers} blocks; the training starts from at most "
            f"{LAYERS} + {SINGLE_LAYERS}"
        )
    t5, clip = cast("T5EncoderModel", pipe.text_encoder_2), cast("CLIPTextModel", pipe.text_encoder)
    drawer = Drawer(layers, single_layers, t5.config.vocab_size, clip.config.vocab_size)
    drawer.transformer.load_state_dict(pipe.transformer.state_dict())
    drawer.t5.load_state_dict(t5.state_dict())
    drawer.clip.load_state_dict(clip.state_dict())
    scratch = out / f"autoencoder-{os.getpid()}.tmp"  # each process of a training writes the same
    torch.save({"model": pipe.vae.state_dict()}, scratch)
    scratch.rename(out / "autoencoder.pt")
    return drawer.eval(), (pipe.vae.config["shift_factor"], pipe.vae.config["scaling_factor"])
