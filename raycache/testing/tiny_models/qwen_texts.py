"""Qwen's tokenizer, built here, and its text encoders: Qwen3, and Qwen2.5-VL, which also takes images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import (
        PaddleOCRVLProcessor,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLTextModel,
        Qwen2Tokenizer,
        Qwen3ForCausalLM,
        Qwen3Model,
        Qwen3VLForConditionalGeneration,
    )

__all__ = ["qwen3", "qwen3_causal", "qwen3_vl", "qwen_processor", "qwen_tokenizer", "qwen_vl", "qwen_vl_text"]

# Pipelines cut their instruction off by its number of tokens, so each of its words must be one token, as for Qwen.
_INSTRUCTIONS = """
Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the objects
and background: Describe the key features of the input image (color, shape, size, texture, objects, background), then
explain how the user's text instruction should alter or modify the image. Generate a new image that meets the user's
requirements while maintaining consistency with the original input where appropriate.
You are a helpful assistant. Describe the video by detailing the following aspects: 1. The main content and theme of the
video. 2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects. 3. Actions, events,
behaviors temporal relationships, physical movement changes of the objects. 4. background environment, light, style and
atmosphere. 5. camera angles, movements, and transitions used in the video.
"""
_STARTS = (
    "system",
    "user",
    "assistant",
    "Describe",
    "color",
    "'s",
    "Ġ(",
    "),",
)  # and those without a space before them
_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    *("<|video_pad|>", "<think>", "</think>"),
)
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_TOKENS = 2048


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A token for each word of the pipelines' own instructions, and for each byte of all others."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    vocabulary, merges = _vocabulary()
    pairs: dict[str, Any] = {"merges": merges}  # accepted, but not declared
    tokenizer = Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(vocabulary)},
        **pairs,
        model_max_length=_TOKENS,
        extra_special_tokens={"image_token": "<|image_pad|>"},
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    tokenizer.chat_template = _CHAT
    return tokenizer


def qwen3(width: int = 32, layers: int = 3) -> Qwen3Model:
    """Qwen3, ``width`` channels."""
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(Qwen3Config(**_sizes(width, layers), head_dim=8))


def qwen3_causal(width: int, layers: int) -> Qwen3ForCausalLM:
    """As :func:`qwen3`, with the language model head, which is not used."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_sizes(width, layers), head_dim=8, tie_word_embeddings=True))


def qwen_vl(width: int = 32) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL, ``width`` channels, with a vision encoder of two blocks."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config=_vl_sizes(width),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
        },
        **_vision_ids(),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(width: int = 32, layers: int = 3) -> Qwen3VLForConditionalGeneration:
    """Qwen3-VL, ``width`` channels, with a vision encoder of two blocks."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    config = Qwen3VLConfig(
        text_config={**_vl_sizes(width, layers), "head_dim": 8},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": width,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        **_vision_ids(),
    )
    return Qwen3VLForConditionalGeneration(config)


def qwen_vl_text(width: int = 32) -> Qwen2_5_VLTextModel:
    """The text part of Qwen2.5-VL."""
    from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**_vl_sizes(width)))


def qwen_processor(tokenizer: Qwen2Tokenizer, patch: int = 14) -> PaddleOCRVLProcessor:
    """Prepares text, and images in squares of ``patch`` pixels, like the processors of Qwen's models.

    Those have a part for videos which no pipeline here asks for, and which cannot be loaded without torchvision. This
    one has the same two other parts, and puts as many tokens for an image into the text.
    """
    from transformers import PaddleOCRVLProcessor, Qwen2VLImageProcessor

    # Few patches of an image are enough for a small encoder.
    pixels = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    images = Qwen2VLImageProcessor(size=pixels, patch_size=patch)
    return PaddleOCRVLProcessor(image_processor=images, tokenizer=tokenizer, chat_template=_CHAT)


def _vision_ids() -> dict[str, Any]:
    return {
        "image_token_id": _id("<|image_pad|>"),
        "video_token_id": _id("<|video_pad|>"),
        "vision_start_token_id": _id("<|vision_start|>"),
        "vision_end_token_id": _id("<|vision_end|>"),
    }


def _vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens, and the merges that form the words among them from left to right."""
    from tokenizers.pre_tokenizers import ByteLevel

    # Those after a space begin with a sign that stands nowhere else, so no word's merges break another's.
    words = [*(f"Ġ{word}" for word in re.findall(r"\w+", _INSTRUCTIONS)), *_STARTS]
    merges = list(dict.fromkeys(pair for word in words for pair in _chain(word)))
    return [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges), *_SPECIAL], merges


def _chain(word: str) -> Iterator[tuple[str, str]]:
    for end in range(1, len(word)):
        yield word[:end], word[end]


def _id(token: str) -> int:
    return _vocabulary()[0].index(token)


def _vl_sizes(width: int, layers: int = 3) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [1, 1, 2]}
    return _sizes(width, layers) | {"rope_parameters": rope}


def _sizes(width: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(_vocabulary()[0]),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": _TOKENS,
        "bos_token_id": None,
        "eos_token_id": _id("<|im_end|>"),
        "pad_token_id": _id("<|endoftext|>"),
    }
