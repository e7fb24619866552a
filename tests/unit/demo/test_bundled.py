"""The bundled checkpoint: complete, small, loaded by an unchanged pipeline, and it draws what it is told."""

from __future__ import annotations

from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from raycache.demo import demo_model_path
from raycache.demo.evaluate import held_out_scenes, load, verdicts
from raycache.demo.judge import judge, see, shares
from raycache.demo.world import Scene, Thing
from raycache.models.arguments import call_arguments
from raycache.models.generating import generate_images
from raycache.models.registry import family_of
from raycache.models.source import prepare_model
from raycache.settings import ModelSettings
from raycache.size import Size
from raycache.tune.measures import psnr
from tests.helpers.jobs import make_job

if TYPE_CHECKING:
    from diffusers import FluxPipeline

#: Captions drawn, and how many must be right in every part: see `test_captions_never_told_are_drawn_as_asked`.
CAPTIONS, RIGHT = 128, 75


@pytest.fixture(scope="module")
def pipe() -> FluxPipeline:
    return load(str(demo_model_path()))


def at_least(right: int, count: int, share: float) -> float:
    """The chance that ``right`` or more of ``count`` are, where each is with chance ``share``."""
    return sum(comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(right, count + 1))


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


def test_sizes_that_it_was_not_trained_at_are_told() -> None:
    family = family_of("FluxPipeline", "demo")
    assert family.request_warnings("a red circle", Size(256, 128), 10.0, 1.0) == []
    (warning,) = family.request_warnings("a red circle", Size(64, 64), 3.5, 1.0)
    assert warning.startswith("size: the bundled model was trained at 128x128, 192x192")


def test_guidance_that_it_does_not_know_is_lowered_and_told(pipe: FluxPipeline) -> None:
    family = family_of("FluxPipeline", "demo")
    (warning,) = family.request_warnings("a red circle", Size(128, 128), 15.0, 1.0)
    assert warning == "guidance_scale: the bundled model knows 0 to 10; 10 is used instead of 15"
    (warning,) = family.request_warnings("a red circle", Size(128, 128), 3.5, 4.0)
    assert warning.endswith("has learned true CFG as guidance; 1 is used instead of 3.5")
    assert family.request_warnings("a red circle", Size(128, 128), 1.0, 4.0) == []
    for asked, used in ((15.0, 10.0), (3.5, 3.5)):
        assert call_arguments(pipe, family, make_job(guidance_scale=asked), 16)["guidance_scale"] == used
    # Its guidance is true CFG that was learned; both at once would guide by the product of their scales.
    assert call_arguments(pipe, family, make_job(true_cfg_scale=4.0), 16)["guidance_scale"] == 1.0


@pytest.mark.slow
def test_eight_steps_show_backgrounds_and_colours(pipe: FluxPipeline) -> None:
    transformer = pipe.transformer
    assert (len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)) == (8, 12)
    assert transformer.config.num_attention_heads == 4
    assert transformer.config.guidance_embeds
    asked = {"white": "red", "gray": "yellow", "black": "cyan", "brown": "pink"}
    prompts = [f"a large {colour} circle on a {ground} background" for ground, colour in asked.items()]
    with torch.no_grad():
        images = generate_images(pipe, prompts, [1, 2, 3, 4], steps=8, size=Size(128, 128))
    assert images.shape == (4, 128, 128, 3)
    seen = [see(image) for image in images]
    assert [ground for ground, _ in seen] == list(asked)
    right = [
        colour in {thing.colour for thing in things} for (_, things), colour in zip(seen, asked.values(), strict=True)
    ]
    assert np.sum(right) >= 3, seen


@pytest.mark.slow
def test_captions_never_told_are_drawn_as_asked(pipe: FluxPipeline) -> None:
    """Four steps draw 74 % of such captions right in every part (28 steps 91 %): 95 of these.

    Were it 30 %, the chance of 75 right of 128 would be 1 in 10 billion, and 3 % were it half; at 74 % it is 99 %, and
    these captions and seeds are always the same: what changes their number is the model, diffusers, torch or the judge.
    """
    assert at_least(RIGHT, CAPTIONS, 0.30) < 1e-10
    assert at_least(RIGHT, CAPTIONS, 0.50) < 0.05 < 0.99 < at_least(RIGHT, CAPTIONS, 0.74)
    scenes = held_out_scenes(CAPTIONS, never_told=True)
    assert len({scene.caption for scene in scenes}) == CAPTIONS
    with torch.no_grad():
        read = [usual for part in verdicts(pipe, scenes, steps=4, batch=16) for usual, _ in part]
    assert sum(verdict.everything for verdict in read) >= RIGHT, shares(read)


@pytest.mark.slow
def test_the_image_shows_what_the_prompt_says(pipe: FluxPipeline) -> None:
    scene = Scene(Thing("large", "cyan", "cross"), "brown", "right of", Thing("large", "pink", "circle"))
    with torch.no_grad():
        (image,) = generate_images(pipe, [scene.caption], [7], steps=28, size=Size(128, 128))
    assert judge(scene, image).everything


@pytest.mark.slow
def test_guidance_draws_in_one_call_what_true_cfg_draws_in_two(pipe: FluxPipeline) -> None:
    captions = [scene.caption for scene in held_out_scenes(8, never_told=True)]
    with torch.no_grad():
        told, twice, plain = (
            generate_images(pipe, captions, range(8), steps=8, size=Size(128, 128), **asked)
            for asked in (
                {"guidance_scale": 3.0},
                {"guidance_scale": 1.0, "true_cfg_scale": 3.0},
                {"guidance_scale": 1.0},
            )
        )
    assert psnr(told, twice).mean() > psnr(plain, twice).mean() + 3
    assert psnr(told, twice).mean() > psnr(told, plain).mean() + 3


def test_a_folder_of_its_kind_is_known_by_its_marker(tmp_path: Path) -> None:
    """Else a model trained anew would say nothing of words it does not know."""
    assert prepare_model(ModelSettings(path=str(demo_model_path())))[1] == "demo"
    (tmp_path / "model_index.json").write_text("{}")
    for marker in ("", "[]", '{"kind": "other"}'):
        (tmp_path / "raycache_model.json").write_text(marker)
        assert prepare_model(ModelSettings(path=str(tmp_path)))[1] == "folder"
