"""Mistral's text encoder, and a tokenizer for bytes, built here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Mistral3ForConditionalGeneration, PreTrainedTokenizerFast

__all__ = ["mistral3", "mistral_tokenizer"]

_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
_CHAT = (
    "<s>{% for message in messages %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'user' %}[/INST]{% else %}[INST]{% endif %}{% endfor %}"
)


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte.

    The real model has a processor here, made of this and a part for images, which cannot be loaded without torchvision
    and is only used to have a prompt rewritten.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(_pieces())}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=2048,
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    tokenizer.chat_template = _CHAT
    return tokenizer


def mistral3(width: int, layers: int) -> Mistral3ForConditionalGeneration:
    """Mistral 3, ``width`` channels, with a vision encoder of one block."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    text = {
        "model_type": "mistral",
        "vocab_size": len(_pieces()),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 112,
        "patch_size": 14,
    }
    config = Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=_SPECIAL.index("[IMG]"), spatial_merge_size=1
    )
    return Mistral3ForConditionalGeneration(config)


def _pieces() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return [*_SPECIAL, *sorted(ByteLevel.alphabet())]
