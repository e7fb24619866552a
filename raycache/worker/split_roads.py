"""How each transformer class is split over the ranks: ParaAttention, diffusers' own plan, or a plan of ours.

Every way is Ulysses: a rank has some of the tokens, and inside attention all tokens in some of the heads.
ParaAttention 0.3.38 has adapters that work under diffusers 0.42 for four classes. diffusers has plans for a few of the
others; those here have the same form. A processor that calls torch's attention itself is not split by a plan, and the
result is then wrong without any error: :mod:`raycache.worker.split_check` detects that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.hooks import HookRegistry
from diffusers.models._modeling_parallel import (
    ContextParallelInput,
    ContextParallelOutput,
)
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21AttnProcessor

from raycache.worker.split_by import by_diffusers, by_para_attention, config_of
from raycache.worker.split_heads import SplitHeads
from raycache.worker.split_hooks import JointMask, SplitAttention
from raycache.worker.uneven import TokenSplit

__all__ = ["SPLITS"]

#: [batch, tokens, channels], split by tokens before a module, or gathered after it.
_STATES, _WHOLE = ContextParallelInput(1, 3), ContextParallelOutput(1, 3)
_BOTH = {"hidden_states": _STATES, "encoder_hidden_states": _STATES}
_IDS = ContextParallelInput(0, 2)
#: One per token; one per image has a dimension fewer, and is not split.
_OWN_TIMES = {"timestep": ContextParallelInput(1, 2)}
#: A transformer that takes position ids of both streams, as FLUX does.
_PLACED: dict[str, Any] = {"": _BOTH | {"img_ids": _IDS, "txt_ids": _IDS}, "proj_out": _WHOLE}


def _by_places(transformer: Any) -> None:
    """Bria, LongCat-Image and Ovis-Image."""
    by_diffusers(transformer, _PLACED)


def _chroma(transformer: Any) -> None:
    """Its blocks make a mask of token pairs from the per-token mask of text and image."""
    split = TokenSplit(outer_masks=True)
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(JointMask(split, True), "cp_joint_mask")
    by_diffusers(transformer, _PLACED, split=split)


def _cogvideox(transformer: Any) -> None:
    """ParaAttention splits positions by latent frames; CogVideoX 1.5 has one position for several of them."""
    if transformer.config.patch_size_t is not None:
        raise ValueError(
            f"{type(transformer).__name__} with patch_size_t (CogVideoX 1.5) gets wrong token positions from "
            "ParaAttention's adapter: it cannot be split; use one rank"
        )
    by_para_attention(transformer)


def _hunyuan(transformer: Any) -> None:
    """HunyuanImage and HunyuanVideo. The text refiner has the whole text on every rank."""
    if getattr(transformer.config, "image_condition_type", None) == "token_replace":
        raise ValueError(
            f"{type(transformer).__name__} with image_condition_type 'token_replace' treats the tokens of the first "
            "frame separately, counted over all ranks: it cannot be split; use one rank"
        )
    rope = {part: ContextParallelInput(0, 2, split_output=True) for part in (0, 1)}
    plan: dict[str, Any] = {"transformer_blocks.0": _BOTH, "rope": rope, "proj_out": _WHOLE}
    split = TokenSplit()
    # Before the plan's hooks: a later one runs first, and the first block's must have split the text by then.
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        HookRegistry.check_if_exists_or_initialize(block).register_hook(JointMask(split), "cp_joint_mask")
    by_diffusers(transformer, plan, ("context_embedder*",), split)


def _hunyuan_video_15(transformer: Any) -> None:
    """Its attention makes a mask of token pairs from the text's; the text refiner has the whole text on every rank."""
    rope = {part: ContextParallelInput(0, 2, split_output=True) for part in (0, 1)}
    plan: dict[str, Any] = {"transformer_blocks.0": _BOTH, "rope": rope, "proj_out": _WHOLE}
    plan["transformer_blocks.*"] = {"attention_mask": ContextParallelInput(1, 2)}
    by_diffusers(transformer, plan, ("context_embedder*",), TokenSplit(outer_masks=True))


def _ernie(transformer: Any) -> None:
    """One sequence of image and text, tokens first. The mask covers all keys, which stay in order."""
    tokens_first = ContextParallelInput(0, 3)
    plan: dict[str, Any] = {
        "pos_embed": {0: ContextParallelInput(1, 4, split_output=True)},
        "layers.0": {"x": tokens_first},
        "layers.*": {"temb": [tokens_first] * 6},
        "final_linear": ContextParallelOutput(0, 3),
    }
    by_diffusers(transformer, plan)


def _flux3(transformer: Any) -> None:
    """Text, image and reference images each have their own blocks before the joint ones."""
    images = {"image_cond_hidden_states": _STATES, "image_cond_ids": _IDS}
    streams = {"txt_mode_blocks.*": "text", "mode_blocks.image.*": "latents", "mode_blocks.image_cond.*": "images"}
    by_diffusers(transformer, {**_PLACED, "": _PLACED[""] | images}, streams=streams)


def _krea2(transformer: Any) -> None:
    """One sequence of text and image. The mask covers all keys, which stay in order."""
    rope = {part: ContextParallelInput(0, 2, split_output=True) for part in (0, 1)}
    last = len(transformer.transformer_blocks) - 1  # after it the text is cut off
    plan: dict[str, Any] = {
        "rotary_emb": rope,
        "transformer_blocks.0": {"hidden_states": _STATES},
        f"transformer_blocks.{last}": _WHOLE,
    }
    by_diffusers(transformer, plan, ("text_fusion.*",))


def _ltx(transformer: Any) -> None:
    """Text and its mask stay whole: diffusers' plan splits both, and gathers the mask for all heads instead of a rank's
    own. Cross attention then sends nothing, since each rank's queries are its own tokens. diffusers' plan also lacks
    the per-token timesteps of a video that starts from an image."""
    plan = dict(transformer._cp_plan)
    plan[""] = {name: split for name, split in plan[""].items() if not name.startswith("encoder_")} | _OWN_TIMES
    by_diffusers(transformer, plan, whole=("transformer_blocks.*.attn2",))


def _ltx2(transformer: Any) -> None:
    """As LTX-Video; audio, which has few tokens, stays whole as well.

    Attention to the video from the audio has all queries on every rank. diffusers' plan lacks the per-token timesteps,
    the second rotary embedding, and rotary embeddings of the kind that released checkpoints have.
    """
    plan = dict(transformer._cp_plan)
    of_tokens = _OWN_TIMES | {"video_keyframes_mask": _STATES}
    plan[""] = {name: split for name, split in plan[""].items() if not name.startswith("encoder_")} | of_tokens
    tokens, dims = (2, 4) if transformer.config.rope_type == "split" else (1, 3)  # with or without heads
    rope = {part: ContextParallelInput(tokens, dims, split_output=True) for part in (0, 1)}
    plan |= {"rope": rope, "cross_attn_rope": rope}
    local = ("attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn")
    by_diffusers(transformer, plan, whole=tuple(f"transformer_blocks.*.{name}" for name in local))
    config = transformer._parallel_config
    asked = config_of(config, config.context_parallel_config.split.only("latents", whole_queries=True))
    for block in transformer.transformer_blocks:
        block.video_to_audio_attn.processor._parallel_config = asked


def _qwen_image_21(transformer: Any) -> None:
    """One sequence of text and images. Attention is called for each part separately, so it has it whole.

    Raises:
        ValueError: its attention processor is not diffusers' default.
    """
    of_tokens = {"target_token_mask": ContextParallelInput(0, 1)}
    plan: dict[str, Any] = {"transformer_blocks.0": {"hidden_states": _STATES}, "transformer_blocks.*": of_tokens}
    plan |= {"norm_out": of_tokens, "proj_out": _WHOLE}
    split = TokenSplit()
    for block in transformer.transformer_blocks:
        if type(block.attn.processor) is not QwenImage21AttnProcessor:
            raise ValueError(
                f"{type(transformer).__name__} with {type(block.attn.processor).__name__} cannot be split: use "
                f"QwenImage21AttnProcessor, or one rank"
            )
        block.attn.set_processor(SplitHeads(split, block.attn.processor))
    by_diffusers(transformer, plan, ("transformer_blocks.*",), split)


def _sd3(transformer: Any) -> None:
    """Its processors call torch's attention themselves, so that call is replaced."""
    by_diffusers(transformer, {"transformer_blocks.0": _BOTH, "proj_out": _WHOLE})
    hook = SplitAttention(transformer._parallel_config)
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, "cp_attention")


def _wan_vace(transformer: Any) -> None:
    rope = {part: ContextParallelInput(1, 4, split_output=True) for part in (0, 1)}
    control = {"hidden_states": _STATES, "control_hidden_states": _STATES}
    plan: dict[str, Any] = {
        "rope": rope,
        "vace_blocks.0": control,
        "blocks.0": {"hidden_states": _STATES},
        "proj_out": _WHOLE,
    }
    by_diffusers(transformer, plan)


def _z_image(transformer: Any) -> None:
    """Its refiners have all tokens on every rank. ``layers`` takes image and text as one sequence."""
    plan: dict[str, Any] = {
        "layers.0": {"x": _STATES},
        "layers.*": {"attn_mask": ContextParallelInput(1, 2), "freqs_cis": _STATES},
    }
    plan |= {f"all_final_layer.{size}": _WHOLE for size in transformer.all_final_layer}  # one for each patch size
    by_diffusers(transformer, plan, whole=("noise_refiner.*", "context_refiner.*", "siglip_refiner.*"))


#: By the class name of the transformer. Classes not listed run on one rank.
SPLITS: dict[str, Callable[[Any], None]] = {
    "BriaTransformer2DModel": _by_places,
    "ChromaTransformer2DModel": _chroma,
    "CogVideoXTransformer3DModel": _cogvideox,
    "ErnieImageTransformer2DModel": _ernie,
    "Flux2Transformer2DModel": by_para_attention,
    "Flux3Transformer2DModel": _flux3,
    "FluxTransformer2DModel": by_para_attention,
    "HunyuanImageTransformer2DModel": _hunyuan,
    "HunyuanVideo15Transformer3DModel": _hunyuan_video_15,
    "HunyuanVideoTransformer3DModel": _hunyuan,
    "Krea2Transformer2DModel": _krea2,
    "LTX2VideoTransformer3DModel": _ltx2,
    "LTXVideoTransformer3DModel": _ltx,
    "LongCatImageTransformer2DModel": _by_places,
    "MochiTransformer3DModel": by_para_attention,
    "OvisImageTransformer2DModel": _by_places,
    "QwenImage21Transformer2DModel": _qwen_image_21,
    "QwenImageTransformer2DModel": by_diffusers,
    "SD3Transformer2DModel": _sd3,
    "WanTransformer3DModel": by_diffusers,
    "WanVACETransformer3DModel": _wan_vace,
    "ZImageTransformer2DModel": _z_image,
}
