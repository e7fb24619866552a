"""Small autoencoders that shrink as much as the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["image_autoencoder"]


def image_autoencoder(channels: int = 4, *, shift: float = 0.1, scale: float = 0.4) -> AutoencoderKL:
    """A picture's side shrinks by 8: FLUX, Stable Diffusion 3, Z-Image.

    Args:
        channels: of its latents.
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
