"""The judge reads rendered scenes right, and says so when an image is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from raycache.demo.judge import STRICT, USUAL, Bar, judge, see, shares
from raycache.demo.world import Scene, Thing, random_scene, render

SCENE = Scene(Thing("large", "red", "circle"), "gray", "left of", Thing("small", "blue", "star"))


@pytest.mark.slow
@pytest.mark.parametrize("bar", [USUAL, STRICT], ids=["usual", "strict"])
@pytest.mark.parametrize(("width", "height"), [(128, 128), (192, 192), (256, 128)])
def test_reads_rendered_scenes(width: int, height: int, bar: Bar) -> None:
    rng = np.random.default_rng(5)
    scenes = [random_scene(rng, held_out=None) for _ in range(150)]
    read = shares([judge(scene, render(scene, width, height, rng), bar) for scene in scenes])
    assert min(read.values()) >= 0.98, read


def test_reads_through_noise_and_dull_colours() -> None:
    rng = np.random.default_rng(6)
    verdicts = []
    for _ in range(60):
        scene = random_scene(rng, held_out=None)
        image = render(scene, 128, 128, rng) * 0.95 + 5 + rng.normal(0, 6, (128, 128, 3))
        verdicts.append(judge(scene, image.clip(0, 255).astype(np.uint8)))
    assert shares(verdicts)["everything"] >= 0.95


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        (replace(SCENE, background="black"), {"background"}),
        (replace(SCENE, relation="right of"), {"relation"}),
        (replace(SCENE, relation="above"), {"relation"}),
        (replace(SCENE, first=Thing("large", "red", "square")), {"shape"}),
        (replace(SCENE, second=Thing("large", "blue", "star")), {"size"}),
        # Things are known by their colour: a wrong one leaves nothing to compare.
        (replace(SCENE, first=Thing("large", "green", "circle")), {"colour", "shape", "size", "relation"}),
        # One thing too many.
        (Scene(SCENE.first, "gray"), {"colour", "relation"}),
    ],
)
def test_finds_what_is_wrong(asked: Scene, wrong: set[str]) -> None:
    verdict = judge(asked, render(SCENE, 128, 128, np.random.default_rng(0)))
    assert {name for name, right in vars(verdict).items() if not right} == wrong
    assert verdict.everything is False
    assert verdict.all_right is (wrong == {"size"})


def test_an_empty_image_holds_nothing() -> None:
    assert see(np.full((128, 128, 3), 245, np.uint8)) == ("white", [])


def test_a_blob_of_the_right_colour_is_no_shape() -> None:
    image = np.full((128, 128, 3), 128, np.uint8)
    # A long bar: no shape of the world is five times as long as high.
    image[60:70, 30:90] = (215, 25, 30)
    _, (thing,) = see(image)
    assert (thing.colour, thing.shape) == ("red", None)


@pytest.mark.parametrize(
    "outline",
    [
        [(64, 30), (98, 64), (64, 98), (30, 64)],  # a diamond
        [(30, 40), (98, 40), (64, 98)],  # a triangle upside down
        "ellipse",
    ],
)
def test_the_strict_bar_lets_no_other_shape_pass(outline: list[tuple[int, int]] | str) -> None:
    image = Image.new("RGB", (128, 128), (128, 128, 128))
    pencil = ImageDraw.Draw(image)
    if outline == "ellipse":
        pencil.ellipse((22, 34, 106, 94), fill=(215, 25, 30))
    else:
        pencil.polygon(outline, fill=(215, 25, 30))
    _, (thing,) = see(np.asarray(image), STRICT)
    assert (thing.colour, thing.shape) == ("red", None)


def test_the_strict_bar_knows_no_colour_but_the_worlds() -> None:
    image = np.full((128, 128, 3), (20, 20, 200), np.uint8)
    image[40:80, 40:80] = (245, 245, 245)
    background, (thing,) = see(image, STRICT)
    assert (background, thing.colour, thing.shape) == (None, None, "square")
