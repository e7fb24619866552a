"""What the cache must know of a transformer block beyond diffusers' own ``TransformerBlockRegistry``.

The registry says where the image and the text stream stand among a block's arguments and results. Per-image decisions
need one thing more: which of the *other* arguments carry one entry per image, so that a block can be run for a part of
the batch. That is written down here per block class; nothing is guessed from shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["BLOCKS", "MODELS", "STACKS", "BlockSpec", "supported_models"]

#: Children of a transformer that hold its blocks.
STACKS = frozenset({"transformer_blocks", "single_transformer_blocks", "blocks", "layers"})


@dataclass(frozen=True)
class BlockSpec:
    """One block class.

    Attributes:
        batched: arguments (tensors, or tuples of tensors) with one entry per image, besides the two streams. An entry
            with another leading size than the batch (a broadcast ``temb``, say) is passed on whole.
        nested: ``{argument: keys}`` of batched entries inside a dict argument.
        fused_text: text and image are one sequence inside the block, so text takes part when its input is compared.
    """

    batched: tuple[str, ...] = ()
    nested: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fused_text: bool = False


_IP_ADAPTER = {"joint_attention_kwargs": ("ip_hidden_states",)}

BLOCKS: dict[str, BlockSpec] = {
    "FluxTransformerBlock": BlockSpec(("temb",), _IP_ADAPTER),
    "FluxSingleTransformerBlock": BlockSpec(("temb",), _IP_ADAPTER, fused_text=True),
    "Flux2TransformerBlock": BlockSpec(("temb_mod_img", "temb_mod_txt")),
    "Flux2SingleTransformerBlock": BlockSpec(("temb_mod",)),
    "QwenImageTransformerBlock": BlockSpec(
        ("temb", "encoder_hidden_states_mask"), {"joint_attention_kwargs": ("attention_mask",)}
    ),
    "WanTransformerBlock": BlockSpec(("temb", "encoder_hidden_states")),
    "HunyuanVideoTransformerBlock": BlockSpec(("temb", "attention_mask")),
    "HunyuanVideoSingleTransformerBlock": BlockSpec(("temb", "attention_mask"), fused_text=True),
    "HunyuanVideoTokenReplaceTransformerBlock": BlockSpec(("temb", "attention_mask", "token_replace_emb")),
    "HunyuanVideoTokenReplaceSingleTransformerBlock": BlockSpec(
        ("temb", "attention_mask", "token_replace_emb"), fused_text=True
    ),
    "CogVideoXBlock": BlockSpec(("temb",)),
    "MochiTransformerBlock": BlockSpec(("temb", "encoder_attention_mask")),
    "LTXVideoTransformerBlock": BlockSpec(("temb", "encoder_hidden_states", "encoder_attention_mask")),
    "JointTransformerBlock": BlockSpec(("temb",), _IP_ADAPTER),
}

#: Transformer classes that are tested (tests/unit/test_models.py), by the name of their family.
MODELS: dict[str, tuple[str, ...]] = {
    "FLUX": ("FluxTransformer2DModel",),
    "FLUX.2": ("Flux2Transformer2DModel",),
    "Qwen-Image": ("QwenImageTransformer2DModel",),
    "Wan": ("WanTransformer3DModel",),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel",),
    "CogVideoX": ("CogVideoXTransformer3DModel",),
    "Mochi": ("MochiTransformer3DModel",),
    "LTX-Video": ("LTXVideoTransformer3DModel",),
    "SD3": ("SD3Transformer2DModel",),
}


def supported_models() -> dict[str, tuple[str, ...]]:
    """Families whose diffusers transformers work with every method, with their class names. Supported means tested."""
    return dict(MODELS)
