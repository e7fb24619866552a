"""What the transformer is trained for: the flow to the data, then the guided flow in one call instead of two."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from raycache.demo.family import MOST_GUIDANCE
from raycache.demo.training.drawer import Drawer
from raycache.demo.training.latents import Latents, untold

GUIDANCE = (0.0, MOST_GUIDANCE)
"""Guidance is drawn evenly from this range. The flow of the data does not depend on it."""
GUIDED = (1.0, 5.0)
"""Scales of true CFG that the transformer learns; guidance outside of them means the nearest of the two."""
NOISE_SPREAD = 1.2


class Noisy(NamedTuple):
    """Scenes with noise, and what is drawn for each.

    Attributes:
        latents: packed, ``[scenes, tokens, 16]``.
        velocity: noise minus image, like ``latents``.
        sigma: share of noise ``[scenes]``, 0 to 1.
        guidance: ``[scenes]``.
    """

    latents: torch.Tensor
    velocity: torch.Tensor
    sigma: torch.Tensor
    guidance: torch.Tensor


def add_noise(part: Latents, noise_mean: float, rng: np.random.Generator, device: torch.device) -> Noisy:
    """The scenes of ``part`` at logit-normal noise of mean logit ``noise_mean``."""
    clean = part.packed.to(device, torch.float32)
    count = len(clean)
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(device)
    draws = rng.standard_normal(count)
    sigma = torch.from_numpy(1 / (1 + np.exp(-(noise_mean + NOISE_SPREAD * draws)))).to(device, torch.float32)
    guidance = torch.from_numpy(rng.uniform(*GUIDANCE, size=count)).to(device, torch.float32)
    share = sigma[:, None, None]
    return Noisy((1 - share) * clean + share * noise, noise - clean, sigma, guidance)


def flow_loss(
    model: Drawer, part: Latents, noise_mean: float, rng: np.random.Generator, device: torch.device
) -> torch.Tensor:
    """Mean squared error of the velocity on the scenes of ``part``, at logit-normal noise."""
    noisy = add_noise(part, noise_mean, rng, device)
    return (_velocity(model, noisy, part) - noisy.velocity).square().mean()


def guided_loss(
    model: Drawer, teacher: Drawer, part: Latents, noise_mean: float, rng: np.random.Generator, device: torch.device
) -> torch.Tensor:
    """Mean squared error to what ``teacher`` predicts with true CFG, whose scale ``model`` is only told.

    Guidance distillation (Meng et al. 2023, "On Distillation of Guided Diffusion Models", arXiv:2210.03142, stage one),
    by which FLUX.1-dev was made too. Scenes without a caption stay what they are at any guidance.
    """
    noisy = add_noise(part, noise_mean, rng, device)
    plain = noisy._replace(guidance=torch.ones_like(noisy.guidance))
    with torch.no_grad():
        told = _velocity(teacher, plain, part)
        silent = _velocity(teacher, plain, untold(part))
    scale = noisy.guidance.clamp(*GUIDED)[:, None, None]
    return (_velocity(model, noisy, part) - torch.lerp(silent, told, scale)).square().mean()


def _velocity(model: Drawer, noisy: Noisy, part: Latents) -> torch.Tensor:
    device = noisy.latents.device
    ids = part.t5_ids.to(device), part.clip_ids.to(device)
    return model(noisy.latents, noisy.sigma, noisy.guidance, *ids, part.grid)
