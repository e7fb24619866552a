"""Random weights that are felt: every block moves its input, every word and every step changes the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["spread"]

_LEFT_AS_THEY_ARE = {"vae", "audio_vae", "vocoder"}


def spread(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Draw the weights of the encoders and transformers in ``pipe`` anew, wide enough for their small widths.

    As libraries draw them (0.02, and zeros where a block starts as the identity), residuals would be so small that
    reusing one could not be told from computing it, and all prompts would read alike. Autoencoders keep what torch
    gave them, which already fills their range. Numbers come from torch's global generator.

    Args:
        pipe: all of its parts are switched to evaluation, too.

    Returns:
        ``pipe``.
    """
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
            if name not in _LEFT_AS_THEY_ARE:
                _draw(part)
    return pipe


def _draw(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("norm_added_k.weight"):
            # Some tens of words stand beside thousands of tokens of a picture to edit, and would be lost there.
            torch.nn.init.constant_(parameter, 4.0)
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)
