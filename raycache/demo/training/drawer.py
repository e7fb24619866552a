"""The parts trained together: text encoders and transformer, called as by ``FluxPipeline``; and their growth."""

from __future__ import annotations

import torch
from torch import nn

from raycache.demo.training.parts import LAYERS, SINGLE_LAYERS, make_text_encoders, make_transformer

TAKEN_OVER = 0.2
"""Share of a block's residual that its copies take over. The loss rises from 0.10 to 0.6 at once, with 0.5 to 3.8."""


class Drawer(nn.Module):
    """Predicts the velocity of noisy latents for a caption.

    Args:
        layers: double-stream blocks.
        single_layers: single-stream blocks.
        t5_words: size of T5's vocabulary.
        clip_words: size of CLIP's vocabulary.
    """

    def __init__(self, layers: int, single_layers: int, t5_words: int, clip_words: int) -> None:
        super().__init__()
        self.transformer = make_transformer(layers, single_layers)
        # The data knows no guidance: its embedding starts without effect, until the last stage teaches it.
        nn.init.zeros_(self.transformer.get_parameter("time_text_embed.guidance_embedder.linear_2.weight"))
        self.t5, self.clip = make_text_encoders(t5_words, clip_words)

    def forward(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        guidance: torch.Tensor,
        t5_ids: torch.Tensor,
        clip_ids: torch.Tensor,
        grid: tuple[int, int],
    ) -> torch.Tensor:
        """Velocity (noise minus image), ``[batch, tokens, 16]`` like ``noisy``.

        Args:
            noisy: packed latents ``[batch, tokens, 16]``.
            sigma: share of noise ``[batch]``, 0 to 1.
            guidance: ``[batch]``.
            t5_ids: ``[batch, words]``.
            clip_ids: ``[batch, words]``.
            grid: rows and columns of image tokens.
        """
        text = self.t5(input_ids=t5_ids).last_hidden_state
        return self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=text,
            pooled_projections=self.clip(input_ids=clip_ids).pooler_output,
            timestep=sigma,
            guidance=guidance,
            txt_ids=noisy.new_zeros(text.shape[1], 3),
            img_ids=token_positions(*grid, device=noisy.device),
            return_dict=False,
        )[0]


def token_positions(rows: int, columns: int, device: torch.device | None = None) -> torch.Tensor:
    """Positions of image tokens as FLUX numbers them: ``[rows * columns, 3]``, (0, row, column)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).to(device, torch.float32)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """2x2 latents to one token, as FLUX does: ``[batch, 4, h, w]`` to ``[batch, h/2 * w/2, 16]``."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2 * (width // 2), channels * 4)


def grow(small: Drawer, t5_words: int, clip_words: int) -> Drawer:
    """A drawer of ``LAYERS`` + ``SINGLE_LAYERS`` blocks that computes nearly what ``small`` computes.

    Trained blocks are distributed over the new depth, the first one stays first. Each is followed by its copies, which
    take over ``TAKEN_OVER`` of what it adds, so that no block is idle from the first step of training on. Copies with
    closed gates would compute exactly what ``small`` does, but stay weak: of 45 grown that way, none came to more than
    9 % of its original's gates. Equal shares compute something else: the second half of a block sees other tokens.
    """
    large = Drawer(LAYERS, SINGLE_LAYERS, t5_words, clip_words)
    source, target = small.transformer, large.transformer
    kept = {
        name: value
        for name, value in small.state_dict().items()
        if not name.startswith(("transformer.transformer_blocks.", "transformer.single_transformer_blocks."))
    }
    large.load_state_dict(kept, strict=False)
    for name in ("transformer_blocks", "single_transformer_blocks"):
        _spread(getattr(source, name), getattr(target, name))
    return large


def _spread(trained: nn.ModuleList, blocks: nn.ModuleList) -> None:
    owners = [index * len(trained) // len(blocks) for index in range(len(blocks))]
    for index, (block, owner) in enumerate(zip(blocks, owners, strict=True)):
        block.load_state_dict(trained[owner].state_dict())
        if copies := owners.count(owner) - 1:
            original = owners.index(owner) == index
            scale_gates(block, 1 - TAKEN_OVER if original else TAKEN_OVER / copies)


def scale_gates(block: nn.Module, factor: float) -> None:
    """Multiply what a FLUX block adds by ``factor``: the adaLN rows that compute its gates. 0 makes it an identity."""
    with torch.no_grad():
        for name, parts, gates in (("norm", 3, (2,)), ("norm1", 6, (2, 5)), ("norm1_context", 6, (2, 5))):
            if (norm := getattr(block, name, None)) is None:
                continue
            for gate in gates:
                norm.linear.weight.chunk(parts)[gate].mul_(factor)
                norm.linear.bias.chunk(parts)[gate].mul_(factor)
