"""The tokenizers know the world's words; every other word is dropped and reported."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from raycache.demo.evaluate import held_out_scenes
from raycache.demo.words import SECOND, SILENT, WORDS, forward, make_tokenizers, prompt_warnings, unknown_words
from raycache.demo.world import Scene, loose_caption, random_scene

PROMPT = "A large RED circle, to the left of a cat's small blue star on a gray-white background!"
KEPT = ["large", "red", "circle", "left", "small", "blue", "star", "gray", "white", "background"]
MARKED = ["large", "red", "circle", "left", "small2", "blue2", "star2", "gray", "white", "background"]


def test_every_caption_is_known_and_fits() -> None:
    rng = np.random.default_rng(0)
    tokenizer, _ = make_tokenizers(16)
    for _ in range(300):
        scene = random_scene(rng)
        for caption in (scene.caption, loose_caption(scene, rng)):
            assert unknown_words(caption) == []
            assert len(tokenizer(caption).input_ids) <= 10


@pytest.mark.parametrize("index", [0, 1])
def test_saved_and_loaded_tokenizers_drop_unknown_words(index: int, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = make_tokenizers(16)[index]
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    kept = (MARKED, KEPT)[index]
    assert loaded.tokenize(PROMPT) == kept
    padded = {"padding": "max_length", "truncation": True}
    ids = loaded(PROMPT, **padded).input_ids
    assert ids == made(PROMPT, **padded).input_ids
    assert len(ids) == 16
    ends = (["</s>"], ["<|startoftext|>", "<|endoftext|>"])[index]
    shown = loaded.convert_ids_to_tokens(ids)
    assert [token for token in shown if token not in {*kept, "<pad>"}][: len(ends)] == ends


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        (PROMPT, ["cat"]),
        ("a red dog and a blue dog on the moon", ["dog", "moon"]),
        ("small_blue star", ["small_blue"]),
        ("'red' \"circle\"", []),
        ("🦆 ein Kreis", ["ein", "kreis"]),
        ("a 'cat' left of a 'dog house'", ["cat", "dog", "house"]),
        ("the cat\u2019s red star", ["cat"]),
        ("\uff52\uff45\uff44 circle", []),
    ],
)
def test_unknown_words(prompt: str, unknown: list[str]) -> None:
    assert unknown_words(prompt) == unknown


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("red ring above ring", ["red", "ring", "above", "ring2"]),
        ("a blue star", ["blue", "star"]),
        ("a star below the small red cross on brown", ["star", "below", "small2", "red2", "cross2", "brown"]),
        # Nobody can say by hand that a word is the second's.
        ("red2 circle", ["circle"]),
    ],
)
def test_the_second_things_words_are_marked(prompt: str, tokens: list[str]) -> None:
    assert make_tokenizers(16)[0].tokenize(prompt) == tokens


def test_told_forward_is_the_same_scene() -> None:
    words = ["small", "red", "ring", "right", "large", "blue", "star", "gray", "background"]
    assert forward(words) == ["large", "blue", "star", "left", "small", "red", "ring", "gray", "background"]
    assert forward(forward(words)) == forward(words)
    assert forward(["red", "ring", "below", "star"]) == ["star", "above", "red", "ring"]
    assert forward(["red", "ring"]) == ["red", "ring"]


def test_what_is_reported_is_what_the_tokenizer_drops() -> None:
    tokenizer, _ = make_tokenizers(16)
    for prompt in (PROMPT, "small_blue star", "redblue circle 2 stars", "left-of triangle"):
        dropped = {word for word in re.findall(r"(?<!')\b\w+", prompt.lower()) if word not in WORDS}
        assert dropped - {*SILENT} <= set(unknown_words(prompt))
        assert set(tokenizer.tokenize(prompt)) <= {*WORDS, *SECOND}


def test_warning_names_words_and_vocabulary() -> None:
    assert prompt_warnings("a red circle") == []
    for empty in ("", "🦆", "a of the"):
        assert prompt_warnings(empty)[0].startswith("the prompt has no known word; known words: large")
    (warning,) = prompt_warnings("a red cat")
    assert warning.startswith("unknown word 'cat' ignored; known words: large, small, red")
    (many,) = prompt_warnings(" ".join(f"word{letter}" for letter in "abcdefghijkl"))
    assert "and more" in many


@pytest.mark.slow
def test_what_is_called_never_told_is_told_in_no_training_caption() -> None:
    """Training turns "A right of B" into "B left of A", whose caption has a checksum of its own."""

    def either_way(scene: Scene) -> str:
        return " ".join(forward([word for word in scene.caption.split() if word in WORDS]))

    rng = np.random.default_rng(0)
    told = {either_way(random_scene(rng)) for _ in range(20_000)}
    asked = held_out_scenes(200, never_told=True)
    assert not told & {either_way(scene) for scene in asked}
    plain = held_out_scenes(200)
    assert abs(sum(len(s.things) for s in asked) - sum(len(s.things) for s in plain)) < 30, "no easier for that"
    scene = next(scene for scene in asked if scene.second)
    assert scene.mirrored != scene == scene.mirrored.mirrored
