"""Which arguments of a transformer's call have one row per image, by diffusers class."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ALONE", "STACKED", "CallRows"]


@dataclass(frozen=True)
class CallRows:
    """The arguments of one class's calls. An argument in none of these attributes must be an equal string or number in
    all calls; a call with tensors in one (such as inputs of adapters) is never joined with others.

    Attributes:
        each: with one or more rows for each image: tensors, or lists with an entry for each image.
        same: with a row for each image, all of which must be equal; the value is the number of dimensions of one row. A
            tensor of no more dimensions has no rows, and counts as one of ``whole``.
        layers: a list of tensors with rows, or one stacked tensor in which layers come before rows.
        whole: tensors without rows, which must be equal.
        told_together: computes from the transformer's config and the arguments what depends on all rows at once, and
            must be equal, too.
    """

    each: tuple[str, ...]
    same: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    told_together: Callable[[Any, Mapping[str, Any]], Hashable] = lambda config, kwargs: None


def _rows(more: str = "", **others: Any) -> CallRows:
    """The arguments that nearly all classes have, and ``more``."""
    return CallRows(("hidden_states", "timestep", "encoder_hidden_states", *more.split()), **others)


def _text_alone(config: Any, kwargs: Mapping[str, Any]) -> bool:
    """HunyuanVideo 1.5 treats image embeddings as an image as soon as one of their rows is not zero."""
    return not bool(kwargs["image_embeds"].any())


def _longest_text(config: Any, kwargs: Mapping[str, Any]) -> int:
    """Lumina 2 truncates the text of all rows to the longest one."""
    return int(kwargs["encoder_attention_mask"].sum(1).max())


def _gist(config: Any, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """Fibo 2 has as many gist tokens as its longest text needs, and puts them last where another text needs fewer."""
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    mask = kwargs.get("encoder_attention_mask")
    lengths = [kwargs["encoder_hidden_states"].shape[2]] if mask is None else mask.sum(1).tolist()
    counts = compute_gist_count(
        lengths,
        min_gist=config.min_num_gist_tokens,
        max_gist=config.max_num_gist_tokens,
        gist_step=config.gist_step,
        min_text_len=config.gist_min_text_len,
        max_text_len=config.gist_max_text_len,
    )
    return tuple(sorted(set(counts)))


def _padded_text(config: Any, kwargs: Mapping[str, Any]) -> int:
    """Z-Image pads each text to a multiple of 32 tokens, and then all texts to the longest."""
    return max(-(-len(text) // 32) for text in kwargs["cap_feats"])


_MASK = "encoder_attention_mask"
_IMAGE = "encoder_hidden_states_image"
_SIZES = "original_size target_size crop_coords"
_SECOND_TEXT = "timestep_r encoder_hidden_states_2 encoder_attention_mask_2"
_POSITIONS = {"img_ids": 2, "txt_ids": 2}
_ROPE = ("image_rotary_emb",)

#: By the class name of the transformer. Classes not listed are never called for several jobs at once.
STACKED: dict[str, CallRows] = {
    "AllegroTransformer3DModel": _rows(f"attention_mask {_MASK}", whole=_ROPE),
    "AnyFlowTransformer3DModel": _rows(f"r_timestep {_IMAGE}"),
    "AuraFlowTransformer2DModel": _rows(),
    "BriaFibo2Transformer2DModel": _rows(_MASK, layers=("context_latents",), told_together=_gist),
    "BriaFiboTransformer2DModel": _rows(
        "pooled_projections guidance", same=_POSITIONS, layers=("text_encoder_layers",)
    ),
    "BriaTransformer2DModel": _rows("pooled_projections guidance", same=_POSITIONS),
    "ChromaTransformer2DModel": _rows("attention_mask", same=_POSITIONS),
    "ChronoEditTransformer3DModel": _rows(_IMAGE),
    "CogVideoXTransformer3DModel": _rows(whole=("ofs", *_ROPE)),
    "CogView3PlusTransformer2DModel": _rows(_SIZES),
    "CogView4Transformer2DModel": _rows(f"attention_mask {_SIZES}", whole=_ROPE),
    "ConsisIDTransformer3DModel": _rows(whole=_ROPE),
    "CosmosTransformer3DModel": _rows("condition_mask", whole=("padding_mask",)),
    "DiTTransformer2DModel": CallRows(("hidden_states", "timestep", "class_labels")),
    "EasyAnimateTransformer3DModel": _rows("encoder_hidden_states_t5 inpaint_latents control_latents"),
    "ErnieImageTransformer2DModel": CallRows(("hidden_states", "timestep", "text_bth", "text_lens")),
    "Flux2Transformer2DModel": _rows("guidance", same=_POSITIONS),
    "Flux3Transformer2DModel": _rows(
        "image_cond_hidden_states target_timestep", same=_POSITIONS | {"image_cond_ids": 2}
    ),
    "FluxTransformer2DModel": _rows("pooled_projections guidance", same=_POSITIONS),
    "HeliosTransformer3DModel": _rows(
        "indices_hidden_states indices_latents_history_short indices_latents_history_mid indices_latents_history_long "
        "latents_history_short latents_history_mid latents_history_long"
    ),
    "HiDreamImageTransformer2DModel": CallRows(
        (
            *("hidden_states", "timesteps", "encoder_hidden_states_t5", "pooled_embeds"),
            *("img_ids", "img_sizes", "hidden_states_masks"),
        ),
        layers=("encoder_hidden_states_llama3",),
    ),
    "HunyuanImageTransformer2DModel": _rows(f"{_MASK} {_SECOND_TEXT} guidance"),
    "HunyuanVideo15Transformer3DModel": _rows(f"{_MASK} {_SECOND_TEXT} image_embeds", told_together=_text_alone),
    "HunyuanVideoTransformer3DModel": _rows(f"{_MASK} pooled_projections guidance"),
    "Ideogram4Transformer2DModel": _rows("position_ids segment_ids indicator"),
    "JoyImageEditPlusTransformer3DModel": _rows("encoder_hidden_states_mask shape_list"),
    "JoyImageEditTransformer3DModel": _rows(),
    "Kandinsky5Transformer3DModel": _rows("pooled_projections", whole=("visual_rope_pos", "text_rope_pos")),
    "Kandinsky6Transformer3DModel": _rows(
        f"pooled_projections audio_hidden_states {_MASK} visual_token_type_ids", whole=("visual_rope_pos",)
    ),
    "Krea2Transformer2DModel": _rows(_MASK, whole=("position_ids",)),
    "LTX2VideoTransformer3DModel": _rows(
        "audio_hidden_states audio_encoder_hidden_states audio_timestep sigma audio_sigma video_coords audio_coords "
        f"{_MASK} audio_encoder_attention_mask perturbation_mask video_self_attention_mask video_keyframes_mask"
    ),
    "LTXVideoTransformer3DModel": _rows(f"{_MASK} video_coords"),
    "LongCatImageTransformer2DModel": _rows("guidance", same=_POSITIONS),
    "Lumina2Transformer2DModel": _rows(_MASK, told_together=_longest_text),
    "LuminaNextDiT2DModel": _rows("encoder_mask", whole=_ROPE),
    "MochiTransformer3DModel": _rows(_MASK),
    "MotifVideoTransformer3DModel": _rows(f"{_MASK} image_embeds"),
    "NucleusMoEImageTransformer2DModel": _rows("encoder_hidden_states_mask", same={"img_shapes": 0}),
    "OmniGenTransformer2DModel": CallRows(("hidden_states", "timestep", "input_ids", "attention_mask", "position_ids")),
    "OvisImageTransformer2DModel": _rows(same=_POSITIONS),
    "PRXTransformer2DModel": _rows("attention_mask"),
    "PixArtTransformer2DModel": _rows(_MASK),
    "QwenImage21Transformer2DModel": _rows("encoder_hidden_states_mask", same={"img_shapes": 0, "img_mask": 1}),
    "QwenImageTransformer2DModel": _rows(
        "encoder_hidden_states_mask guidance additional_t_cond", same={"img_shapes": 0}
    ),
    "SD3Transformer2DModel": _rows("pooled_projections"),
    "SanaTransformer2DModel": _rows(f"{_MASK} attention_mask guidance"),
    "SanaVideoTransformer3DModel": _rows(f"{_MASK} attention_mask guidance"),
    "SkyReelsV2Transformer3DModel": _rows(f"{_IMAGE} fps"),
    "WanAnimateTransformer3DModel": _rows(f"{_IMAGE} pose_hidden_states face_pixel_values"),
    "WanTransformer3DModel": _rows(_IMAGE),
    "WanVACETransformer3DModel": _rows(f"{_IMAGE} control_hidden_states", whole=("control_hidden_states_scale",)),
    "ZImageTransformer2DModel": CallRows(("x", "t", "cap_feats"), told_together=_padded_text),
}

#: Classes that the cache knows but whose calls are never joined, with the reason.
ALONE: dict[str, str] = {
    "GlmImageTransformer2DModel": "its pipeline passes a per-job object for keys and values to every call",
    "HunyuanVideoFramepackTransformer3DModel": "truncates the text of a single row, but masks that of several",
}
