"""Small autoencoders with the same downscaling as the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLQwenImage, AutoencoderKLWan

__all__ = ["as_if_trained", "image_autoencoder", "qwen_autoencoder", "wan_autoencoder"]

#: Of each latent channel; none is 0 or 1, so that omitting one is noticed.
_MEAN, _STD = (0.1, 0.2, 0.3, -0.4), (1.0, 2.0, 1.5, 0.5)


def image_autoencoder(channels: int = 4, *, shift: float = 0.1, scale: float = 0.4) -> AutoencoderKL:
    """Downscales by 8: FLUX, Stable Diffusion 3, Z-Image.

    Args:
        channels: channels of its latents.
        shift, scale: of the latents, before the transformer sees them.
    """
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def qwen_autoencoder(base: int = 8, stages: int = 3) -> AutoencoderKLQwenImage:
    """An image is a video of one frame; its sides are halved ``stages`` times, to 4 channels."""
    from diffusers import AutoencoderKLQwenImage

    deeper = {"dim_mult": [1] * (stages + 1), "temperal_downsample": [False] * (stages - 2) + [True, True]}
    return AutoencoderKLQwenImage(**_causal(base) | deeper)


def wan_autoencoder(**sizes: Any) -> AutoencoderKLWan:
    """Downscales sides by 8 and frames except the first by 4, to 4 channels, unless ``sizes`` differ."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(**_causal(8) | sizes)


def as_if_trained(vae: torch.nn.Module, *, mean: str, spread: str) -> None:
    """Set the buffers that scale latents to values as after training, instead of 0 and 1.

    Args:
        vae: has both buffers.
        mean, spread: their names; ``spread`` may be a deviation or a variance.
    """
    torch.nn.init.normal_(vae.get_buffer(mean), std=0.2)
    torch.nn.init.uniform_(vae.get_buffer(spread), 0.5, 2.0)


def _causal(base: int) -> dict[str, Any]:
    return {
        "base_dim": base,
        "z_dim": len(_MEAN),
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": list(_MEAN),
        "latents_std": list(_STD),
    }
