"""The model's world: scenes of one or two coloured shapes on a plain background, their captions and their images."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (215, 25, 30),
    "orange": (255, 135, 0),
    "yellow": (255, 235, 30),
    "green": (20, 150, 50),
    "cyan": (0, 205, 225),
    "blue": (25, 60, 220),
    "purple": (130, 30, 175),
    "pink": (255, 130, 195),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "black": (15, 15, 15),
    "brown": (95, 60, 40),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES: dict[str, float] = {"large": 0.19, "small": 0.115}
"""Radius of a thing as a share of the image's shorter side."""
RELATIONS = ("left of", "right of", "above", "below")
_MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

HELD_OUT_SHARE = 10
"""One caption in this many is kept from training."""

_SUPERSAMPLING = 4
_NEAR = 0.26
"""Distance of a thing's centre from the image's nearer edge, as a share of that side, before jitter."""


@dataclass(frozen=True)
class Thing:
    """One shape. ``size`` is a key of SIZES, ``colour`` of COLOURS, ``shape`` one of SHAPES."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The content of a caption: a first thing, optionally a second one in ``relation`` to it, and a background."""

    first: Thing
    background: str
    relation: str | None = None
    second: Thing | None = None

    def __post_init__(self) -> None:
        if (self.relation is None) != (self.second is None):
            raise ValueError("a scene has both a relation and a second thing, or neither")

    @property
    def things(self) -> tuple[Thing, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def caption(self) -> str:
        """For instance "a large red circle left of a small blue star on a gray background"."""
        pair = f" {self.relation} a {self.second}" if self.second else ""
        return f"a {self.first}{pair} on a {self.background} background"

    @property
    def mirrored(self) -> Scene:
        """The same image told from its other thing: "A left of B" is "B right of A". One thing is its own mirror."""
        if self.second is None or self.relation is None:
            return self
        return replace(self, first=self.second, relation=_MIRRORED[self.relation], second=self.first)

    @property
    def held_out(self) -> bool:
        """True if training never sees an image with this caption; depends only on the caption.

        Training also describes images from their other thing: :attr:`never_told` includes the mirrored caption.
        """
        return zlib.crc32(self.caption.encode()) % HELD_OUT_SHARE == 0

    @property
    def never_told(self) -> bool:
        """True if training does not see this image with any caption."""
        return self.held_out and self.mirrored.held_out


@dataclass(frozen=True)
class Placement:
    """The position of a thing: its centre and radius in pixels."""

    x: float
    y: float
    radius: float


def random_scene(rng: np.random.Generator, *, held_out: bool | None = False, single_share: float = 0.15) -> Scene:
    """Draw a scene; the two things differ in colour, so that an image is unambiguous.

    Args:
        rng: random generator.
        held_out: draw from the training captions (False), the held-out ones (True), or all (None). Neither a held-out
            caption nor its mirror image is a training caption.
        single_share: share of scenes with one thing only.
    """
    while True:
        colours = rng.choice(list(COLOURS), size=2, replace=False)
        first, second = (Thing(_pick(rng, SIZES), str(colour), _pick(rng, SHAPES)) for colour in colours)
        scene = Scene(first, _pick(rng, BACKGROUNDS), _pick(rng, RELATIONS), second)
        if rng.random() < single_share:
            scene = replace(scene, relation=None, second=None)
        told = not (scene.held_out or scene.mirrored.held_out)
        if held_out is None or (scene.held_out if held_out else told):
            return scene


def loose_caption(scene: Scene, rng: np.random.Generator) -> str:
    """The scene as a user might phrase it, sometimes without a size or the background."""
    words = scene.caption
    if rng.random() < 0.3:
        words = words.replace("left of", "to the left of").replace("right of", "to the right of")
    if rng.random() < 0.3:
        words = words.removesuffix(f" on a {scene.background} background")
    if rng.random() < 0.3:
        words = words.replace("large ", "").replace("small ", "")
    if rng.random() < 0.3:
        words = words.replace("a ", "")
    return words


def place(scene: Scene, width: int, height: int, rng: np.random.Generator) -> tuple[Placement, ...]:
    """Choose positions for the things of ``scene``, completely inside the image and not overlapping."""
    centres = {
        None: ((0.5, 0.5),),
        "left of": ((_NEAR, 0.5), (1 - _NEAR, 0.5)),
        "right of": ((1 - _NEAR, 0.5), (_NEAR, 0.5)),
        "above": ((0.5, _NEAR), (0.5, 1 - _NEAR)),
        "below": ((0.5, 1 - _NEAR), (0.5, _NEAR)),
    }[scene.relation]
    placements = []
    for thing, (x, y) in zip(scene.things, centres, strict=True):
        radius = SIZES[thing.size]
        along = 0.03 + 0.6 * (SIZES["large"] - radius)
        across = 0.14
        dx, dy = rng.uniform(-1, 1, size=2)
        dx *= across if x == 0.5 else along
        dy *= across if y == 0.5 else along
        placements.append(Placement((x + dx) * width, (y + dy) * height, radius * min(width, height)))
    return tuple(placements)


def render(scene: Scene, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``scene`` anti-aliased, things placed by ``rng``.

    Returns:
        uint8 array ``[height, width, 3]``, sRGB.

    Raises:
        ValueError: if a side is below 32 pixels, where small shapes cannot be distinguished.
    """
    if min(width, height) < 32:
        raise ValueError(f"an image's sides must be at least 32 pixels, got {width}x{height}")
    image = Image.new("RGB", (width, height), BACKGROUNDS[scene.background])
    for thing, at in zip(scene.things, place(scene, width, height, rng), strict=True):
        # Sub-pixel position goes into the mask (in supersampled pixels), whole pixels into where it is pasted.
        left, top = int(at.x - 1.2 * at.radius), int(at.y - 1.2 * at.radius)
        fine = tuple(round(_SUPERSAMPLING * value) for value in (at.x - left, at.y - top, at.radius))
        mask = shape_mask(thing.shape, *fine)
        image.paste(COLOURS[thing.colour], (left, top), mask.reduce(_SUPERSAMPLING))
    return np.asarray(image)


@lru_cache(maxsize=4096)
def shape_mask(shape: str, x: int, y: int, radius: int) -> Image.Image:
    """A filled ``shape`` around ``(x, y)``, as a square 8-bit mask just large enough, without anti-aliasing."""
    side = -(-(max(x, y) + 6 * radius // 5 + 1) // _SUPERSAMPLING) * _SUPERSAMPLING
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if shape == "ring":
            hole = radius // 2
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _CORNERS[shape]], fill=255)
    return mask


def _regular(points: int, outer: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners of a regular polygon, or of a star if ``inner`` is given, the first one on top; y points down."""
    radii = [outer] if inner is None else [outer, inner]
    angles = np.arange(points * len(radii)) * 2 * np.pi / (points * len(radii))
    return [(radii[i % len(radii)] * np.sin(a), -radii[i % len(radii)] * np.cos(a)) for i, a in enumerate(angles)]


_SQUARE, _ARM = 0.86, 0.34
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(-_SQUARE, -_SQUARE), (_SQUARE, -_SQUARE), (_SQUARE, _SQUARE), (-_SQUARE, _SQUARE)],
    "triangle": _regular(3, 1.15),
    "star": _regular(5, 1.1, 0.48),
    "cross": [
        *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
        *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
    ],
}


def _pick(rng: np.random.Generator, options: Collection[str]) -> str:
    names = list(options)
    return names[rng.integers(len(names))]
