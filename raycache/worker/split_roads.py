"""How each transformer class is split over the ranks: ParaAttention, diffusers' own plan, or a plan of ours.

Every road is Ulysses: a rank has a part of the tokens, and all of them in some of the heads inside attention.
ParaAttention 0.3.38 has adapters that work under diffusers 0.42 for four classes. diffusers has plans for a few of the
others; those here are in the same terms. A processor that calls torch's attention itself never learns that it is split,
and a plan alone is then wrong without a word: :mod:`raycache.worker.split_check` is there to notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any

import torch.distributed as dist
from diffusers.hooks import HookRegistry
from diffusers.models._modeling_parallel import (
    ContextParallelConfig,
    ContextParallelInput,
    ContextParallelOutput,
    ParallelConfig,
)
from torch.distributed.device_mesh import init_device_mesh

from cache_core.para_attention import repair_para_attention
from raycache.worker.fused_ulysses import fuse_ulysses
from raycache.worker.split_hooks import JointMask, SplitAttention, split_by_plan
from raycache.worker.uneven import TokenSplit

__all__ = ["SPLITS", "by_diffusers", "by_para_attention"]

#: [batch, tokens, channels], split by tokens before a module, or put together behind it.
_STATES, _WHOLE = ContextParallelInput(1, 3), ContextParallelOutput(1, 3)
_BOTH = {"hidden_states": _STATES, "encoder_hidden_states": _STATES}
_IDS = ContextParallelInput(0, 2)


def by_para_attention(transformer: Any) -> None:
    """With ParaAttention's adapter. Not with its ``parallelize_pipe``, which patches the pipeline's class."""
    from para_attn.context_parallel.diffusers_adapters import parallelize_transformer

    repair_para_attention()
    parallelize_transformer(transformer)


def by_diffusers(
    transformer: Any,
    plan: Mapping[str, Any] | None = None,
    whole: tuple[str, ...] = (),
    split: TokenSplit | None = None,
) -> None:
    """With diffusers' attention, and its plans in hooks of our own, which split tokens that do not divide, too.

    It is what ``enable_parallelism`` does, which divides by the number of accelerators, and a CPU has none.

    Args:
        plan: what is split and put together where; None is the plan of the transformer's class.
        whole: patterns of names; attention below them has all tokens on every rank, and sends none.
        split: what others ask of the split.
    """
    fuse_ulysses()
    ranks, device = dist.get_world_size(), transformer.device
    context: Any = ContextParallelConfig(ulysses_degree=ranks)
    config = ParallelConfig(context_parallel_config=context)
    mesh = init_device_mesh(device.type, context.mesh_shape, mesh_dim_names=context.mesh_dim_names)
    config.setup(dist.get_rank(), ranks, device, mesh=mesh)
    context.split = split or TokenSplit()
    context.split.join(context._ulysses_mesh.get_group())
    transformer._parallel_config = config
    for name, module in transformer.named_modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config") and not any(fnmatch(name, pattern) for pattern in whole):
            processor._parallel_config = config
    split_by_plan(transformer, context, dict(transformer._cp_plan if plan is None else plan))


def _bria(transformer: Any) -> None:
    by_diffusers(transformer, {"": _BOTH | {"img_ids": _IDS, "txt_ids": _IDS}, "proj_out": _WHOLE})


def _cogvideox(transformer: Any) -> None:
    """ParaAttention cuts places into latent frames; CogVideoX 1.5 has one place for several of them."""
    if transformer.config.patch_size_t is not None:
        raise ValueError(
            f"{type(transformer).__name__} with patch_size_t (CogVideoX 1.5) gets wrong places of its tokens from "
            "ParaAttention's adapter: it cannot be split; use one rank"
        )
    by_para_attention(transformer)


def _hunyuan(transformer: Any) -> None:
    """HunyuanImage and HunyuanVideo. The text's refiner has the whole text on every rank."""
    if getattr(transformer.config, "image_condition_type", None) == "token_replace":
        raise ValueError(
            f"{type(transformer).__name__} with image_condition_type 'token_replace' treats the tokens of the first "
            "frame in a way of their own, counted over all ranks: it cannot be split; use one rank"
        )
    rope = {part: ContextParallelInput(0, 2, split_output=True) for part in (0, 1)}
    plan = {"transformer_blocks.0": _BOTH, "rope": rope, "proj_out": _WHOLE}
    split = TokenSplit()
    # Before the plan's hooks: a later one runs first, and the first block's must have split the text by then.
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        HookRegistry.check_if_exists_or_initialize(block).register_hook(JointMask(split), "cp_joint_mask")
    by_diffusers(transformer, plan, ("context_embedder*",), split)


def _ltx(transformer: Any) -> None:
    """Text and its mask stay whole: diffusers' plan splits both, and puts the mask together for all heads, not for a
    rank's own. Cross attention then sends nothing, since each rank asks with its own tokens."""
    plan = dict(transformer._cp_plan)
    plan[""] = {name: split for name, split in plan[""].items() if not name.startswith("encoder_")}
    by_diffusers(transformer, plan, whole=("transformer_blocks.*.attn2",))


def _sd3(transformer: Any) -> None:
    """Its processors call torch's attention themselves, so it is exchanged there."""
    by_diffusers(transformer, {"transformer_blocks.0": _BOTH, "proj_out": _WHOLE})
    hook = SplitAttention(transformer._parallel_config)
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, "cp_attention")


def _wan_vace(transformer: Any) -> None:
    rope = {part: ContextParallelInput(1, 4, split_output=True) for part in (0, 1)}
    control = {"hidden_states": _STATES, "control_hidden_states": _STATES}
    plan = {"rope": rope, "vace_blocks.0": control, "blocks.0": {"hidden_states": _STATES}, "proj_out": _WHOLE}
    by_diffusers(transformer, plan)


def _z_image(transformer: Any) -> None:
    """Its refiners have all tokens on every rank. ``layers`` takes image and text as one sequence."""
    plan: dict[str, Any] = {
        "layers.0": {"x": _STATES},
        "layers.*": {"attn_mask": ContextParallelInput(1, 2), "freqs_cis": _STATES},
    }
    plan |= {f"all_final_layer.{size}": _WHOLE for size in transformer.all_final_layer}  # one for each patch size
    by_diffusers(transformer, plan, whole=("noise_refiner.*", "context_refiner.*", "siglip_refiner.*"))


#: By the class name of the transformer. What is not here runs on one rank.
SPLITS: dict[str, Callable[[Any], None]] = {
    "BriaTransformer2DModel": _bria,
    "CogVideoXTransformer3DModel": _cogvideox,
    "Flux2Transformer2DModel": by_para_attention,
    "FluxTransformer2DModel": by_para_attention,
    "HunyuanImageTransformer2DModel": _hunyuan,
    "HunyuanVideoTransformer3DModel": _hunyuan,
    "LTXVideoTransformer3DModel": _ltx,
    "MochiTransformer3DModel": by_para_attention,
    "QwenImageTransformer2DModel": by_diffusers,
    "SD3Transformer2DModel": _sd3,
    "WanTransformer3DModel": by_diffusers,
    "WanVACETransformer3DModel": _wan_vace,
    "ZImageTransformer2DModel": _z_image,
}
