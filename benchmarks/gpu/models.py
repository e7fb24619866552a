"""FLUX.1-dev and its autoencoder at full size, with random weights, created on the device itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from diffusers.models import AutoencoderKL, FluxTransformer2DModel
from torch import nn

from benchmarks.gpu.plan import Facts, Plan, Shape
from cache_core.blocks import find_blocks
from raycache.models.compiling import BlockCompiler

__all__ = ["Steps", "autoencoder", "compile_blocks", "flux", "quantize", "unfit", "why_not_fp8"]

_Model = TypeVar("_Model", bound=nn.Module)
#: Bytes for activations, a cache's memory and libraries' workspaces, besides the weights, of FLUX.1-dev at 1024x1024.
_BESIDE = 4 << 30
#: Steps from one jump of the inputs to the next.
_PERIOD = 4
#: The lowest compute capability with FP8 tensor cores.
_FP8 = (8, 9)


def flux(shape: Shape, device: str) -> FluxTransformer2DModel:
    """The transformer; the same weights in every process on the same kind of device."""
    return _filled(_hollow(shape), getattr(torch, shape.dtype), device)


def _hollow(shape: Shape) -> FluxTransformer2DModel:
    """The transformer without memory for its weights."""
    rope = (shape.head_dim // 8, shape.head_dim * 7 // 16, shape.head_dim * 7 // 16)  # 128 -> 16, 56, 56
    with torch.device("meta"):
        return FluxTransformer2DModel(
            in_channels=64,
            num_layers=shape.doubles,
            num_single_layers=shape.singles,
            num_attention_heads=shape.heads,
            attention_head_dim=shape.head_dim,
            joint_attention_dim=shape.text_channels,
            pooled_projection_dim=shape.pooled,
            guidance_embeds=True,
            axes_dims_rope=rope,
        )


def autoencoder(small: bool, dtype: torch.dtype, device: str) -> AutoencoderKL:
    """FLUX's autoencoder: 16 latent channels, an eighth of the image's side; small: the same with few channels."""
    with torch.device("meta"):
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8) if small else (128, 256, 512, 512),
            layers_per_block=1 if small else 2,
            latent_channels=16,
            norm_num_groups=1 if small else 32,
            sample_size=1024,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return _filled(model, dtype, device)


@torch.no_grad()
def _filled(model: _Model, dtype: torch.dtype, device: str) -> _Model:
    """Allocate memory on the device, and fill it with random numbers that keep a block's output as large as its input.

    Raises:
        RuntimeError: the model has buffers, which would stay uninitialized.
    """
    if buffers := [name for name, _ in model.named_buffers()]:
        raise RuntimeError(f"{type(model).__name__} has buffers that nobody fills: {', '.join(buffers[:3])}")
    nn.Module.to(model, dtype)  # bypasses diffusers' own, which warns about checkpoints
    model.to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        elif name.endswith("weight"):  # of a norm
            parameter.fill_(1.0)
        else:
            parameter.zero_()
    return model.eval().requires_grad_(False)


class Steps:
    """The inputs of one image's steps: a jump at every fourth, where no method may reuse anything, and drifts by a
    hundredth in between, where each method may reuse everything.

    Random weights cannot show how similar real steps are, so the inputs decide. The prompt stays the same, because the
    cache would treat a different one as a different image.
    """

    def __init__(self, shape: Shape, device: str, steps: int | None = None) -> None:
        self.count = steps or shape.steps
        dtype, side = getattr(torch, shape.dtype), int(shape.tokens**0.5)
        rows = torch.arange(shape.tokens)
        ids = torch.stack([torch.zeros(shape.tokens), rows // side, rows % side], dim=1).to(device)

        def noise(seed: int, *sizes: int) -> torch.Tensor:
            return torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(device, dtype)

        self._common = {
            "encoder_hidden_states": noise(1, 1, shape.text, shape.text_channels),
            "pooled_projections": noise(2, 1, shape.pooled),
            "guidance": torch.full((1,), 3.5, dtype=dtype, device=device),
            "img_ids": ids,
            "txt_ids": torch.zeros(shape.text, 3, device=device),
            "return_dict": False,
        }
        self._calls: list[tuple[torch.Tensor, torch.Tensor]] = []
        for step in range(self.count):
            stretch = step // _PERIOD
            drift = 0.01 * noise(1000 + step, 1, shape.tokens, 64)
            timestep = torch.full((1,), 1.0 - stretch * _PERIOD / self.count, dtype=dtype, device=device)
            self._calls.append((noise(100 + stretch, 1, shape.tokens, 64) + drift, timestep))

    def run(self, model: Any) -> torch.Tensor:
        """Call the model once per step, as FluxPipeline does; returns the last call's prediction: [1, tokens, 64]."""
        for latents, timestep in self._calls:
            with model.cache_context("cond"):
                output: torch.Tensor = model(hidden_states=latents, timestep=timestep, **self._common)[0]
        return output


def compile_blocks(transformer: nn.Module, backend: str = "inductor") -> None:
    """As ``model.compile`` does."""
    BlockCompiler(backend).compile(transformer)


def quantize(transformer: nn.Module, device: str) -> None:
    """FP8 in the linear layers of the blocks: weights, and activations with one scale per token.

    Not for modulations, whose input is one vector per image. A CPU cannot multiply in FP8, so there only weights are
    quantized.
    """
    import torchao.quantization as torchao

    config: Any = torchao.Float8WeightOnlyConfig()
    if device == "cuda":
        # Without torchao's inductor settings, which tune for minutes and affect everything that this process compiles.
        config = torchao.Float8DynamicActivationFloat8WeightConfig(
            granularity=torchao.PerRow(), set_inductor_config=False
        )
    for block in _blocks(transformer):
        torchao.quantize_(block, config, filter_fn=_in_fp8)


def _in_fp8(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and "norm" not in name


def _blocks(transformer: nn.Module) -> Iterator[Any]:
    yield from (found.module for found in find_blocks(transformer))


def why_not_fp8(plan: Plan, facts: Facts) -> str:
    """Why this machine cannot use FP8; empty if it can."""
    if plan.device == "cuda" and facts.capability < _FP8:
        found = ".".join(map(str, facts.capability))
        return f"needs compute capability 8.9 (L4, L20, L40, H100 and later), this is {found}"
    if facts.versions.get("torchao", "not installed") == "not installed":
        return "torchao is not installed (pip install -c constraints.txt torchao)"
    return ""


def unfit(plan: Plan, facts: Facts) -> str:
    """Why the transformer does not fit this machine's memory; empty if it does."""
    if plan.device == "cpu":
        return ""
    size = getattr(torch, plan.shape.dtype).itemsize
    weights = size * sum(parameter.numel() for parameter in _hollow(plan.shape).parameters())
    needed = weights + (_BESIDE if plan.shape.width >= 1024 else 0)
    if facts.free >= needed:
        return ""
    return f"needs {needed / 2**30:.0f} GiB of GPU memory, of which {facts.free / 2**30:.1f} GiB are free"
