"""Distances between images: PSNR, SSIM, and a perceptual one over the features of the model's own autoencoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity  # not lazily: a sweep must not find it missing after an hour

PSNR_CAP = 60.0
"""Equal images have no finite PSNR; this value replaces it in means."""


def psnr(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """dB per image or video, at most ``PSNR_CAP``, of uint8 ``[images, (frames,) height, width, 3]``."""
    error = (images.astype(np.float64) - references.astype(np.float64)) ** 2
    mean = error.mean(axis=tuple(range(1, error.ndim)))
    return np.minimum(PSNR_CAP, 10 * np.log10(255.0**2 / np.maximum(mean, 1e-12)))


def ssim(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Structural similarity per image, 1 for equal ones; of a video, the mean over frames. Shapes as in ``psnr``."""
    height, width, channels = images.shape[-3:]
    pairs = zip(*(some.reshape(-1, height, width, channels) for some in (images, references)), strict=True)
    each = np.array([structural_similarity(one, other, channel_axis=2) for one, other in pairs])
    return each.reshape(len(images), -1).mean(axis=1)


@torch.no_grad()
def feature_distance(vae: Any, images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """A distance like LPIPS per image, 0 for equal ones.

    As there: features of several depths, each position's channels scaled to unit length, squared differences summed
    over channels and averaged over positions, then summed over depths. The features are those of the autoencoder's
    encoder instead of a classifier's, and depths have no weights from human judgements.

    Args:
        vae: a diffusers ``AutoencoderKL``; of any other class, the distances are NaN.
        images: uint8 ``[images, height, width, 3]``.
        references: like ``images``.
    """
    if type(vae).__name__ != "AutoencoderKL" or images.ndim != 4:
        return np.full(len(images), np.nan)
    total = np.zeros(len(images))
    for index in range(len(images)):  # one at a time: the features of large ones are gigabytes
        one, other = (_features(vae, some[index : index + 1]) for some in (images, references))
        for ours, theirs in zip(one, other, strict=True):
            total[index] += float((ours - theirs).square().sum(dim=1).mean())
    return total


def _features(vae: Any, images: np.ndarray) -> list[torch.Tensor]:
    """Unit-length features after each down block: ``[images, channels, h, w]`` each."""
    parameter = next(vae.parameters())
    found: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        for block in vae.encoder.down_blocks
    ]
    try:
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(parameter.device, parameter.dtype) / 127.5 - 1
        vae.encoder(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.nn.functional.normalize(feature.float(), dim=1) for feature in found]
