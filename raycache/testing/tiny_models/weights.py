"""Random weights with an effect: every block changes its input, every word and every step changes the result."""

from __future__ import annotations

import re

import torch

from raycache.testing.tiny_models.family import Pipeline

__all__ = ["spread"]

_LEFT_AS_THEY_ARE = {"vae", "audio_vae", "vocoder"}
#: Names of the modules that embed the timestep.
_TIMESTEP = re.compile(
    r"(timestep_embedder|time_embedder|t_embedder|time_embedding|distilled_guidance_layer\.in_proj)\b"
)
#: Weight of the timestep: reusing a block at neighbouring steps then has errors as in trained models.
_TIMESTEP_GAIN = 0.3


def spread(pipe: Pipeline) -> Pipeline:
    """Randomize the weights of encoders and transformers in ``pipe``, wide enough for their small widths.

    With the libraries' defaults (0.02, and zeros for blocks that start as identity), residuals would be so small that
    reusing one would look like computing it, and all prompts would be alike. Autoencoders keep torch's
    initialization, which already fills their range. Numbers come from torch's global generator.

    Args:
        pipe: all of its parts are also switched to evaluation mode.

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
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        timestep = _TIMESTEP.search(name) is not None
        if name.endswith("norm_added_k.weight"):
            # Otherwise some tens of words would have no effect next to thousands of tokens of an image to edit.
            torch.nn.init.constant_(parameter, 4.0)
        elif parameter.ndim > 1:
            with_bias = name.removesuffix("weight") + "bias" in parameters
            gain = _TIMESTEP_GAIN if timestep and with_bias else 1.0
            torch.nn.init.normal_(parameter, std=gain * parameter[0].numel() ** -0.5)
            if timestep and not with_bias and name.endswith("linear_1.weight"):
                parameter.mul_(_slow_waves(parameter.shape[1]))
        elif timestep:
            torch.nn.init.normal_(parameter, std=1.0)  # blocks are as strong at all steps
        elif not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)


def _slow_waves(count: int) -> torch.Tensor:
    """Factors for a timestep's ``count`` waves, half of them sines, from fast to slow: [count].

    In an embedder without bias, only the slow ones are alike at all steps.
    """
    slow = torch.linspace(0, 1, count // 2) > 0.65
    return torch.where(slow, 1.7, 0.1).repeat(2)
