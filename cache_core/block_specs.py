"""What the cache must know about a transformer's blocks in addition to diffusers' ``TransformerBlockRegistry``.

The registry says which of a block's arguments and results are the image and the text stream. Per-image decisions also
need to know which of the *other* arguments carry one entry per image, so that a block can run for a part of the batch.
That is listed here per block class; nothing is guessed from shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from diffusers.hooks._helpers import TransformerBlockMetadata

__all__ = ["BLOCKS", "SEAMS", "STACKS", "WRAPPERS", "BlockSpec"]

#: Children of a transformer that hold its blocks.
STACKS = frozenset(
    {
        "transformer_blocks",
        "single_transformer_blocks",
        "joint_transformer_blocks",
        "visual_transformer_blocks",
        "double_stream_blocks",
        "single_stream_blocks",
        "double_blocks",
        "blocks",
        "layers",
    }
)

#: Modules of diffusers that wrap a block and compute nothing themselves.
WRAPPERS = frozenset({"HiDreamBlock"})


@dataclass(frozen=True)
class BlockSpec:
    """How one block class is called.

    Attributes:
        batched: arguments (tensors, or tuples of tensors) with one entry per image, besides the two streams. An entry
            whose leading size is not the batch size (such as a broadcast ``temb``) is passed on whole.
        nested: ``{argument: keys}`` of batched entries inside a dict argument.
        with_shared: those of them that may end with one extra entry, which every image uses.
        tokens_first: arguments, including the image stream, whose second dimension is the batch.
        fused_text: the second stream is included when the block's input is compared, because it is one sequence with
            the image inside the block, or is itself generated (sound).
        without: key-value caches that must not be in use, and what to do instead. They fill while blocks run, so no
            block may be skipped, and they are not split by image.
        metadata: where the streams are, for blocks that diffusers' registry does not know or describes wrongly.
    """

    batched: tuple[str, ...] = ()
    nested: dict[str, tuple[str, ...]] = field(default_factory=dict)
    with_shared: tuple[str, ...] = ()
    tokens_first: tuple[str, ...] = ()
    fused_text: bool = False
    without: dict[str, str] = field(default_factory=dict)
    metadata: TransformerBlockMetadata | None = None


_IP_ADAPTER: dict[str, tuple[str, ...]] = {"joint_attention_kwargs": ("ip_hidden_states",)}
_IMAGE = TransformerBlockMetadata(return_hidden_states_index=0)
_IMAGE_THEN_TEXT = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)
_TEXT_THEN_IMAGE = TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0)

BLOCKS: dict[str, BlockSpec] = {
    "FluxTransformerBlock": BlockSpec(("temb",), _IP_ADAPTER),
    "FluxSingleTransformerBlock": BlockSpec(("temb",), _IP_ADAPTER, fused_text=True),
    "Flux2TransformerBlock": BlockSpec(("temb_mod_img", "temb_mod_txt")),
    "Flux2SingleTransformerBlock": BlockSpec(("temb_mod",)),
    "QwenImageTransformerBlock": BlockSpec(
        ("temb", "encoder_hidden_states_mask", "modulate_index"), {"joint_attention_kwargs": ("attention_mask",)}
    ),
    # Three classes have this name: the registry knows Wan's own, but not ChronoEdit's and Wan-Animate's copies.
    "WanTransformerBlock": BlockSpec(("temb",), metadata=_IMAGE),
    "HunyuanVideoTransformerBlock": BlockSpec(("temb", "attention_mask")),
    "HunyuanVideoSingleTransformerBlock": BlockSpec(("temb", "attention_mask"), fused_text=True),
    "HunyuanVideoTokenReplaceTransformerBlock": BlockSpec(("temb", "attention_mask", "token_replace_emb")),
    "HunyuanVideoTokenReplaceSingleTransformerBlock": BlockSpec(
        ("temb", "attention_mask", "token_replace_emb"), fused_text=True
    ),
    "HunyuanImageTransformerBlock": BlockSpec(("temb", "attention_mask")),
    "HunyuanImageSingleTransformerBlock": BlockSpec(("temb", "attention_mask"), fused_text=True),
    "CogVideoXBlock": BlockSpec(("temb",)),
    "CogView4TransformerBlock": BlockSpec(
        ("temb", "attention_mask"), {"attention_kwargs": ("latent_attn_mask", "text_attn_mask")}
    ),
    "MochiTransformerBlock": BlockSpec(("temb", "encoder_attention_mask")),
    "LTXVideoTransformerBlock": BlockSpec(("temb", "image_rotary_emb", "encoder_attention_mask")),
    "JointTransformerBlock": BlockSpec(("temb",), {"joint_attention_kwargs": ("ip_hidden_states", "temb")}),
    # The registry says that this block returns only the image stream; it returns (text, image).
    "BriaTransformerBlock": BlockSpec(("temb",), metadata=_TEXT_THEN_IMAGE),
    "BriaSingleTransformerBlock": BlockSpec(("temb",), fused_text=True, metadata=_TEXT_THEN_IMAGE),
    "Kandinsky5TransformerDecoderBlock": BlockSpec(("text_embed", "time_embed", "rope")),
    "MotifVideoTransformerBlock": BlockSpec(("temb", "attention_mask")),
    "MotifVideoSingleTransformerBlock": BlockSpec(("temb", "attention_mask"), fused_text=True),
    # The registry calls its argument `hidden_states`; it is `x`, text and image in one sequence.
    "ZImageTransformerBlock": BlockSpec(
        ("attn_mask", "freqs_cis", "adaln_input", "noise_mask", "adaln_noisy", "adaln_clean"),
        metadata=TransformerBlockMetadata(return_hidden_states_index=0, hidden_states_argument_name="x"),
    ),
    "ChromaTransformerBlock": BlockSpec(("temb", "attention_mask"), _IP_ADAPTER, metadata=_TEXT_THEN_IMAGE),
    "ChromaSingleTransformerBlock": BlockSpec(("temb", "attention_mask"), _IP_ADAPTER, metadata=_IMAGE),
    "HunyuanVideo15TransformerBlock": BlockSpec(("temb", "attention_mask"), metadata=_IMAGE_THEN_TEXT),
    # Text and images in one sequence; with a causal condition the modulation ends with the row of timestep 0.
    "QwenImage21TransformerBlock": BlockSpec(
        ("modulation", "key_valid", "attention_mask"),
        with_shared=("modulation",),
        without={"layer_cache": "call the pipeline with `use_kv_cache=False`"},
        metadata=_IMAGE,
    ),
    "Lumina2TransformerBlock": BlockSpec(("attention_mask", "image_rotary_emb", "temb"), metadata=_IMAGE),
    "SanaTransformerBlock": BlockSpec(
        ("attention_mask", "encoder_hidden_states", "encoder_attention_mask", "timestep"), metadata=_IMAGE
    ),
    # The second stream is sound.
    "LTX2VideoTransformerBlock": BlockSpec(
        (
            "encoder_hidden_states",
            "audio_encoder_hidden_states",
            "temb",
            "temb_audio",
            "temb_ca_scale_shift",
            "temb_ca_audio_scale_shift",
            "temb_ca_gate",
            "temb_ca_audio_gate",
            "temb_prompt",
            "temb_prompt_audio",
            "video_rotary_emb",
            "audio_rotary_emb",
            "ca_video_rotary_emb",
            "ca_audio_rotary_emb",
            "encoder_attention_mask",
            "audio_encoder_attention_mask",
            "self_attention_mask",
            "audio_self_attention_mask",
            "a2v_cross_attention_mask",
            "v2a_cross_attention_mask",
            "perturbation_mask",
        ),
        fused_text=True,
        metadata=TransformerBlockMetadata(
            return_hidden_states_index=0,
            return_encoder_hidden_states_index=1,
            encoder_hidden_states_argument_name="audio_hidden_states",
        ),
    ),
    # The blocks before these handle one kind of token each, and run at every step.
    "Flux3SingleTransformerBlock": BlockSpec(
        ("temb_mod", "temb_mod_context"), fused_text=True, metadata=_TEXT_THEN_IMAGE
    ),
    "ErnieImageSharedAdaLNBlock": BlockSpec(
        ("rotary_pos_emb", "attention_mask"),
        tokens_first=("x", "temb"),
        metadata=TransformerBlockMetadata(return_hidden_states_index=0, hidden_states_argument_name="x"),
    ),
    "Krea2TransformerBlock": BlockSpec(("temb", "attention_mask"), metadata=_IMAGE),
    "Ideogram4TransformerBlock": BlockSpec(("attention_mask", "image_rotary_emb", "adaln_input"), metadata=_IMAGE),
    # All images share its mask of frames.
    "SkyReelsV2TransformerBlock": BlockSpec(("temb",), metadata=_IMAGE),
    # Each block appends tokens of its own to the text, which those of the next block replace.
    "HiDreamImageTransformerBlock": BlockSpec(
        ("hidden_states_masks", "temb", "image_rotary_emb"), metadata=_IMAGE_THEN_TEXT
    ),
    "HiDreamImageSingleTransformerBlock": BlockSpec(
        ("hidden_states_masks", "temb", "image_rotary_emb"), metadata=_IMAGE
    ),
    "GlmImageTransformerBlock": BlockSpec(
        ("temb", "attention_mask"),
        without={"kv_cache": "GLM-Image cannot be cached with images as conditions"},
        metadata=_IMAGE_THEN_TEXT,
    ),
    "OvisImageTransformerBlock": BlockSpec(("temb",), metadata=_TEXT_THEN_IMAGE),
    "OvisImageSingleTransformerBlock": BlockSpec(("temb",), fused_text=True, metadata=_TEXT_THEN_IMAGE),
    "LongCatImageTransformerBlock": BlockSpec(("temb",), metadata=_TEXT_THEN_IMAGE),
    "LongCatImageSingleTransformerBlock": BlockSpec(("temb",), fused_text=True, metadata=_TEXT_THEN_IMAGE),
    "AuraFlowJointTransformerBlock": BlockSpec(("temb",), metadata=_TEXT_THEN_IMAGE),
    "AuraFlowSingleTransformerBlock": BlockSpec(("temb",), metadata=_IMAGE),
    "CogView3PlusTransformerBlock": BlockSpec(("emb",), metadata=_IMAGE_THEN_TEXT),
    "PRXBlock": BlockSpec(("temb", "image_rotary_emb", "attention_mask"), metadata=_IMAGE),
    "OmniGenBlock": BlockSpec(("attention_mask",), metadata=_IMAGE),
    # Half of the text's channels belong to one block: the model replaces them between blocks.
    "BriaFiboTransformerBlock": BlockSpec(("temb",), metadata=_TEXT_THEN_IMAGE),
    "BriaFiboSingleTransformerBlock": BlockSpec(("temb",), metadata=_IMAGE),
    # Text summary, image and images to edit in one sequence; some blocks also read the text itself.
    "BriaFibo2TransformerBlock": BlockSpec(
        (
            *("attn_mask", "freqs_cis", "adaln_input", "noise_mask", "adaln_noisy", "adaln_clean"),
            *("encoder_hidden_states", "encoder_attention_mask"),
        ),
        metadata=TransformerBlockMetadata(return_hidden_states_index=0, hidden_states_argument_name="x"),
    ),
    "LuminaNextDiTBlock": BlockSpec(("attention_mask", "encoder_mask", "temb"), metadata=_IMAGE),
    "JoyImageTransformerBlock": BlockSpec(("temb",), metadata=_IMAGE_THEN_TEXT),
    "JoyImageEditPlusTransformerBlock": BlockSpec(
        ("temb", "image_rotary_emb", "attention_mask"), metadata=_IMAGE_THEN_TEXT
    ),
    "NucleusMoEImageTransformerBlock": BlockSpec(
        ("temb",),
        {"attention_kwargs": ("attention_mask", "cached_txt_key", "cached_txt_value")},
        metadata=_IMAGE,
    ),
    "AllegroTransformerBlock": BlockSpec(("temb", "attention_mask", "encoder_attention_mask"), metadata=_IMAGE),
    "ConsisIDBlock": BlockSpec(("temb",), metadata=_IMAGE_THEN_TEXT),
    "CosmosTransformerBlock": BlockSpec(
        ("embedded_timestep", "temb", "extra_pos_emb", "attention_mask", "controlnet_residual"), metadata=_IMAGE
    ),
    "EasyAnimateTransformerBlock": BlockSpec(("temb",), metadata=_IMAGE_THEN_TEXT),
    "HeliosTransformerBlock": BlockSpec(("temb", "rotary_emb"), metadata=_IMAGE),
    "AnyFlowTransformerBlock": BlockSpec(("temb",), metadata=_IMAGE),
    "SanaVideoTransformerBlock": BlockSpec(("attention_mask", "encoder_attention_mask", "timestep"), metadata=_IMAGE),
    # The second stream is sound, if there is any.
    "Kandinsky6FusedTransformerDecoderBlock": BlockSpec(
        ("text_v", "text_a", "time_embed", "attn_mask"),
        fused_text=True,
        metadata=TransformerBlockMetadata(
            return_hidden_states_index=0,
            return_encoder_hidden_states_index=1,
            hidden_states_argument_name="vis",
            encoder_hidden_states_argument_name="aud",
        ),
    ),
    "BasicTransformerBlock": BlockSpec(("attention_mask", "encoder_attention_mask", "timestep", "class_labels")),
}

#: Transformers that switch to other streams between two blocks: the number of the first block after the switch.
SEAMS: dict[str, Callable[[Any], int]] = {
    # The encoder's image stream becomes the decoder's text stream.
    "MotifVideoTransformer3DModel": lambda c: c.num_layers + c.num_single_layers - c.num_decoder_layers,
}
