"""The bundled checkpoint: complete, small, loaded by an unchanged pipeline, and it draws what it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raycache.demo import demo_model_path
from raycache.demo.evaluate import draw, load
from raycache.demo.judge import judge, see
from raycache.demo.world import Scene, Thing
from raycache.pipeline import prepare_model
from raycache.settings import ModelSettings


def test_it_fits() -> None:
    files = [path for path in demo_model_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]
    assert (demo_model_path() / "README.md") in files


def test_it_is_named_when_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import raycache.demo as demo

    monkeypatch.setattr(demo, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"raycache\.demo\.train"):
        demo_model_path()


def test_four_steps_show_backgrounds_and_colours() -> None:
    pipe = load(str(demo_model_path()))
    transformer = pipe.transformer
    assert (len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)) == (19, 38)
    assert transformer.config.num_attention_heads == 4
    assert transformer.config.guidance_embeds
    asked = {"white": "red", "gray": "yellow", "black": "cyan", "brown": "pink"}
    prompts = [f"a large {colour} circle on a {ground} background" for ground, colour in asked.items()]
    with torch.no_grad():
        pictures = draw(pipe, prompts, [1, 2, 3, 4], steps=4)
    assert pictures.shape == (4, 128, 128, 3)
    seen = [see(picture) for picture in pictures]
    assert [ground for ground, _ in seen] == list(asked)
    right = [
        colour in {thing.colour for thing in things} for (_, things), colour in zip(seen, asked.values(), strict=True)
    ]
    assert np.sum(right) >= 3, seen


def test_the_picture_shows_what_the_prompt_says() -> None:
    pipe = load(str(demo_model_path()))
    scene = Scene(Thing("large", "cyan", "cross"), "brown", "right of", Thing("large", "pink", "circle"))
    with torch.no_grad():
        (picture,) = draw(pipe, [scene.caption], [7])
    assert judge(scene, picture).everything


def test_a_folder_of_its_kind_is_known_by_its_marker(tmp_path: Path) -> None:
    """Else a model trained anew would say nothing of words it does not know."""
    assert prepare_model(ModelSettings(path=str(demo_model_path())))[1] == "demo"
    (tmp_path / "model_index.json").write_text("{}")
    for marker in ("", "[]", '{"kind": "other"}'):
        (tmp_path / "raycache_model.json").write_text(marker)
        assert prepare_model(ModelSettings(path=str(tmp_path)))[1] == "folder"
