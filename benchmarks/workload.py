"""The models and the schedule of the cache benchmarks: FLUX with random weights, and FLUX whose blocks cost nothing."""

from __future__ import annotations

import copy
import types
from typing import Any, TypedDict, TypeVar

import torch
from diffusers.models import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import nn

__all__ = ["Geometry", "Schedule", "Tokens", "flux", "flux_with_free_blocks", "sharing_weights"]

_CHANNELS = 64
_Model = TypeVar("_Model", bound=nn.Module)


class Geometry(TypedDict):
    """Numbers of blocks and their width; arguments of :func:`flux`."""

    doubles: int
    singles: int
    heads: int
    head_dim: int
    dtype: torch.dtype


class Tokens(TypedDict):
    """Numbers of image and text tokens."""

    tokens: int
    text: int


def flux(
    *, doubles: int, singles: int, heads: int, head_dim: int, dtype: torch.dtype, device: str
) -> FluxTransformer2DModel:
    """A FLUX transformer with random weights."""
    torch.manual_seed(0)
    rope = (head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = FluxTransformer2DModel(
                in_channels=_CHANNELS,
                num_layers=doubles,
                num_single_layers=singles,
                num_attention_heads=heads,
                attention_head_dim=head_dim,
                joint_attention_dim=256,
                pooled_projection_dim=64,
                guidance_embeds=True,
                axes_dims_rope=rope,
            )
        finally:
            torch.set_default_dtype(torch.float32)
    return model.eval()


def flux_with_free_blocks(
    *, doubles: int, singles: int, heads: int, head_dim: int, dtype: torch.dtype, device: str, tokens: int, text: int
) -> FluxTransformer2DModel:
    """FLUX whose blocks only add a constant, so that the rest of a cached image's time is the cache itself."""
    model = flux(doubles=0, singles=0, heads=heads, head_dim=head_dim, dtype=dtype, device=device)
    width = heads * head_dim
    image_part = torch.full((1, tokens, width), 0.5, dtype=dtype, device=device)
    text_part = torch.full((1, text, width), 0.5, dtype=dtype, device=device)

    def forward(
        self: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return encoder_hidden_states + text_part, hidden_states + image_part

    with torch.device("meta"):  # the weights are never used
        blocks: list[nn.Module] = [FluxTransformerBlock(width, heads, head_dim) for _ in range(doubles)]
        blocks += [FluxSingleTransformerBlock(width, heads, head_dim) for _ in range(singles)]
    for block in blocks:
        vars(block)["forward"] = types.MethodType(forward, block)
    model.transformer_blocks.extend(blocks[:doubles])
    model.single_transformer_blocks.extend(blocks[doubles:])
    return model


def sharing_weights(model: _Model) -> _Model:
    """A copy with its own modules, for its own hooks, that shares the parameters to save memory."""
    memo = {id(parameter): parameter for parameter in model.parameters()}
    twin = copy.deepcopy(model, memo)
    for mine, theirs in zip(model.modules(), twin.modules(), strict=True):
        forward = mine.__dict__.get("forward")
        if isinstance(forward, types.MethodType):  # a forward set on the instance must run on the copy
            vars(theirs)["forward"] = types.MethodType(forward.__func__, theirs)
    return twin


class Schedule:
    """The inputs of one image's steps. Every ``period`` steps the input jumps (no method reuses anything there); in
    between it drifts by a hundredth (every method reuses everything), so all methods make the same decisions."""

    def __init__(
        self, steps: int, *, tokens: int, text: int, dtype: torch.dtype, device: str, period: int = 4, jump: bool = True
    ) -> None:
        self.steps = steps
        self._calls: list[dict[str, Any]] = []
        side = int(tokens**0.5)
        rows = torch.arange(tokens)
        ids = torch.stack([torch.zeros(tokens), rows // side, rows % side], dim=1).to(device)

        def noise(seed: int, *shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)

        told = {  # the same in every step, as in a pipeline: another text would be another branch of the cache
            "encoder_hidden_states": noise(7, 1, text, 256),
            "pooled_projections": noise(100, 1, 64),
            "guidance": torch.full((1,), 3.5, dtype=dtype, device=device),
            "img_ids": ids,
            "txt_ids": torch.zeros(text, 3, device=device),
        }
        for step in range(steps):
            stretch = step // period if jump else 0
            self._calls.append(
                told
                | {
                    "hidden_states": noise(stretch, 1, tokens, _CHANNELS)
                    + 0.01 * noise(999 + step, 1, tokens, _CHANNELS),
                    "timestep": torch.full((1,), 1.0 - 0.5 * stretch * period / steps, dtype=dtype, device=device),
                    "return_dict": False,
                }
            )

    def run(self, model: Any) -> torch.Tensor:
        """Call the model once per step, as FluxPipeline does."""
        for call in self._calls:
            with model.cache_context("cond"):
                output = model(**call)[0]
        return output
