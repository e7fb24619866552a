"""First half of the training: an autoencoder for the images of the model's world."""

from __future__ import annotations

import math
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raycache.demo.training.parts import make_autoencoder
from raycache.demo.world import random_scene, render

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL

CROP = 64
SIDE = 128
BATCH = 16
PEAK_RATE = 2e-3
KL_WEIGHT = 1e-6
"""Of the divergence summed over a crop's latents, beside a reconstruction loss averaged over its pixels."""
WHOLE_SHARE = 0.3
"""Share of the steps, at the end, with whole images: the norms then get the same input as in use."""
POLISH_RATE = 1e-3
LATENT_NOISE = 0.03
"""Noise on the latents that the decoder is polished with, as a share of their spread."""
_SAVE_EVERY = 500


def draw_images(count: int, seed: int, *, held_out: bool = False, size: int = SIDE) -> torch.Tensor:
    """Images of random scenes: uint8 ``[count, 3, size, size]``."""
    rng = np.random.default_rng(seed)
    images = np.stack([render(random_scene(rng, held_out=held_out), size, size, rng) for _ in range(count)])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def as_input(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 images as float32 in [-1, 1] on ``device``."""
    return images.to(device, torch.float32).div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def train_autoencoder(
    out: Path, steps: int, device: torch.device, seed: int
) -> Generator[tuple[int, dict[str, float]], None, None]:
    """Train, save to ``out / "autoencoder.pt"`` regularly, and continue from it if it exists.

    Yields:
        (steps done, figures to show) after every step.
    """
    path = out / "autoencoder.pt"
    torch.manual_seed(seed)
    model = _new(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    done = 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    if done >= steps:
        return
    images = draw_images(4000, seed)
    probe = draw_images(64, seed + 1, held_out=True)
    smooth = None
    for step in range(done, steps):
        rate = PEAK_RATE * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        # Numbered by step, so a resumed training sees what an uninterrupted one would have.
        rng = np.random.default_rng((seed, 1, step))
        whole = step >= (1 - WHOLE_SHARE) * steps
        batch = as_input(_whole(images, rng) if whole else _crops(images, rng), device)
        posterior = model.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step)).to(device)
        error = model.decode(posterior.mean + posterior.std * noise).sample - batch
        loss = error.abs().mean() + 4 * error.square().mean() + KL_WEIGHT * posterior.kl().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        squared = error.detach().square().mean().item() / 4
        smooth = squared if smooth is None else 0.98 * smooth + 0.02 * squared
        figures = {"psnr_train": -10 * math.log10(smooth)}
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == steps:
            _save(path, model, optimizer, step + 1)
            figures["psnr_held_out"] = psnr(model, probe, device)
        yield step + 1, figures


def polish_decoder(
    out: Path, steps: int, device: torch.device, seed: int
) -> Generator[tuple[int, dict[str, float]], None, None]:
    """Train the decoder alone, on whole images of several sizes; the latents stay what the transformer learns.

    Reads ``out / "autoencoder.pt"``; regularly saves to ``out / "decoder.pt"``, and continues from it if it exists.

    Yields:
        (steps done, figures to show) after every step.
    """
    path = out / "decoder.pt"
    model = load_autoencoder(out, device)
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=POLISH_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    done = 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    probe = draw_images(64, seed + 1, held_out=True)
    smooth = None
    for step in range(done, steps):
        rate = POLISH_RATE * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng((seed, 3, step))
        size, count = ((128, 4), (128, 4), (128, 4), (192, 2), (256, 1))[rng.integers(5)]
        batch = as_input(draw_images(count, int(rng.integers(2**31)), size=size), device)
        with torch.no_grad():
            latents = model.encode(batch).latent_dist.mean
        # The transformer's latents are never exact: the decoder must not amplify the errors.
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(device)
        error = model.decode(latents + LATENT_NOISE * latents.std() * noise).sample - batch
        loss = error.abs().mean() + 4 * error.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
        squared = error.detach().square().mean().item() / 4
        smooth = squared if smooth is None else 0.98 * smooth + 0.02 * squared
        figures = {"psnr_train": -10 * math.log10(smooth)}
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == steps:
            _save(path, model, optimizer, step + 1)
            figures["psnr_held_out"] = psnr(model, probe, device)
        yield step + 1, figures


def load_autoencoder(out: Path, device: torch.device) -> AutoencoderKL:
    """The autoencoder in its latest state: with the polished decoder if there is one."""
    model = _new(device)
    path = out / "decoder.pt" if (out / "decoder.pt").exists() else out / "autoencoder.pt"
    model.load_state_dict(torch.load(path, map_location=device, weights_only=True)["model"])
    return model.eval()


def _new(device: torch.device) -> AutoencoderKL:
    model = make_autoencoder()
    module: torch.nn.Module = model  # diffusers declares `to` as a plain function
    channels_last: dict[str, Any] = {"memory_format": torch.channels_last}  # documented by torch, not declared
    module.to(device, **channels_last)
    return model


def _save(path: Path, model: AutoencoderKL, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


@torch.no_grad()
def psnr(model: AutoencoderKL, images: torch.Tensor, device: torch.device) -> float:
    """Mean PSNR in dB of ``images`` (uint8) encoded and decoded, each image separately."""
    values = []
    for part in images.split(16):
        batch = as_input(part, device)
        error = (model.decode(model.encode(batch).latent_dist.mean).sample.clamp(-1, 1) - batch).square()
        values.append(-10 * torch.log10(error.mean(dim=(1, 2, 3)) / 4))
    return float(torch.cat(values).mean())


def _crops(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Random crops; the one with more contrast of two, because half of an image is plain background."""
    crops = []
    for index in rng.integers(len(images), size=BATCH):
        corners = rng.integers(SIDE - CROP + 1, size=(2, 2))
        pair = [images[index, :, y : y + CROP, x : x + CROP] for y, x in corners]
        crops.append(max(pair, key=lambda crop: float(crop[:, ::4, ::4].float().std(dim=(1, 2)).sum())))
    return torch.stack(crops)


def _whole(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Whole images with as many pixels as a batch of crops."""
    return images[rng.integers(len(images), size=BATCH * CROP**2 // SIDE**2)]
