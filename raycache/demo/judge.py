"""Reads an image without a model: coloured shapes, their positions and background, and whether they match."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from raycache.demo.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, shape_mask

LEAST_AREA = 0.004
"""Share of the image below which a patch is noise instead of a thing; the smallest thing covers 0.02."""


@dataclass(frozen=True)
class Bar:
    """Tolerances of the judge.

    Attributes:
        likeness: overlap (intersection over union) with the best shape below which a patch has no shape.
        stretch: factor by which a shape may be too tall or too wide.
        colour: RGB distance from the world's nearest colour above which a colour is none of them.
    """

    likeness: float
    stretch: float
    colour: float


USUAL = Bar(likeness=0.6, stretch=1 / 0.7, colour=float("inf"))
"""Takes the nearest shape and colour, even with a wobbly outline: a blob may pass as a circle."""
STRICT = Bar(likeness=0.8, stretch=1.25, colour=70.0)
"""The world's own renderings pass, a diamond or an ellipse does not; a regular pentagon passes as a circle."""
_FAR = 60.0
"""RGB distance from the background at which a thing starts, before its colour is known; edges are half way."""
_SIDE = 48


@dataclass(frozen=True)
class Seen:
    """One thing in an image.

    Attributes:
        colour: nearest of the world's colours, None if it is far from all.
        shape: most like of the world's shapes, None if it resembles none.
        size: nearest of the world's sizes.
        x: horizontal centre, 0 to 1.
        y: vertical centre, 0 to 1, from the top.
        likeness: overlap with the ideal shape, 0 to 1.
    """

    colour: str | None
    shape: str | None
    size: str
    x: float
    y: float
    likeness: float


@dataclass(frozen=True)
class Verdict:
    """Which parts of a caption an image shows.

    Attributes:
        colour: as many things as asked, in the colours asked.
        shape: each thing, known by its colour, has the shape asked.
        size: each thing has the size asked.
        relation: the things are in the relation asked; for one thing, that it is the only one.
        background: the background has the colour asked.
    """

    colour: bool
    shape: bool
    size: bool
    relation: bool
    background: bool

    @property
    def all_right(self) -> bool:
        """Colour, shape, relation and background together. Size is separate: see ``everything``."""
        return self.colour and self.shape and self.relation and self.background

    @property
    def everything(self) -> bool:
        """``all_right`` and the sizes, too."""
        return self.all_right and self.size


def see(image: np.ndarray, bar: Bar = USUAL) -> tuple[str | None, list[Seen]]:
    """Background and things of an image, things by area, largest first.

    Args:
        image: uint8 ``[height, width, 3]``, sRGB.
        bar: the tolerances.
    """
    pixels = image.astype(np.float32)
    rim = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3), pixels[:, 0], pixels[:, -1]])
    ground = np.median(rim, axis=0)
    background = _nearest(ground, BACKGROUNDS, bar)
    patches, _ = ndimage.label(np.linalg.norm(pixels - ground, axis=-1) > _FAR)
    things = []
    for index, window in enumerate(ndimage.find_objects(patches), 1):
        patch = patches[window] == index
        if patch.sum() < LEAST_AREA * patches.size:
            continue
        thing, area = _read(pixels, patch, window, ground, bar)
        if thing is not None:
            things.append((area, thing))
    return background, [thing for _, thing in sorted(things, key=lambda pair: -pair[0])]


def judge(scene: Scene, image: np.ndarray, bar: Bar = USUAL) -> Verdict:
    """Whether ``image`` (uint8 ``[height, width, 3]``) matches ``scene``."""
    background, things = see(image, bar)
    by_colour = {thing.colour: thing for thing in things}
    complete = len(things) == len(scene.things) and set(by_colour) == {thing.colour for thing in scene.things}
    pairs = [(asked, by_colour.get(asked.colour)) for asked in scene.things]
    found = [seen for _, seen in pairs if seen is not None]
    return Verdict(
        colour=complete,
        shape=all(seen is not None and seen.shape == asked.shape for asked, seen in pairs),
        size=all(seen is not None and seen.size == asked.size for asked, seen in pairs),
        relation=complete and _relation(found) == scene.relation,
        background=background == scene.background,
    )


def shares(verdicts: list[Verdict]) -> dict[str, float]:
    """Share of verdicts, 0 to 1, for each part of a caption, ``all_right`` and ``everything``."""
    names = [*(field.name for field in fields(Verdict)), "all_right", "everything"]
    return {name: float(np.mean([getattr(verdict, name) for verdict in verdicts])) for name in names}


def _relation(things: list[Seen]) -> str | None:
    """The relation of the first of two things to the second; None if there is only one."""
    if len(things) == 1:
        return None
    first, second = things
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _read(
    pixels: np.ndarray, patch: np.ndarray, window: tuple[slice, slice], ground: np.ndarray, bar: Bar
) -> tuple[Seen | None, int]:
    """The thing in one patch, cut where its edge is half background, and its area in pixels."""
    core = ndimage.binary_erosion(patch, iterations=2)
    inside = pixels[window][core if core.sum() >= 16 else patch]
    paint = np.median(inside, axis=0)
    colour = _nearest(paint, COLOURS, bar)
    axis = paint - ground
    mask = patch & ((pixels[window] - ground) @ axis > 0.5 * (axis @ axis))
    if not mask.any():
        return None, 0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    area = int(mask.sum())
    square = np.asarray(Image.fromarray(mask).resize((_SIDE, _SIDE), Image.Resampling.NEAREST))
    # Stretched to the same box, so a box that is far from the shape's own must be recognized by its sides.
    likeness = {shape: _overlap(square, _ideal(shape)[0]) for shape in SHAPES}
    shape = max(likeness, key=likeness.__getitem__)
    height, width = pixels.shape[:2]
    stretch = mask.shape[0] / mask.shape[1] / _ideal(shape)[1]
    fits = likeness[shape] >= bar.likeness and 1 / bar.stretch < stretch < bar.stretch
    radius = (area / _ideal(shape)[2]) ** 0.5 / min(width, height)
    size = min(SIZES, key=lambda name: abs(SIZES[name] - radius))
    # The middle of the box, not the centre of mass: it is close to where a triangle or star was placed.
    y = (window[0].start + (rows[0] + rows[-1]) / 2) / height
    x = (window[1].start + (columns[0] + columns[-1]) / 2) / width
    return Seen(colour, shape if fits else None, size, float(x), float(y), float(likeness[shape])), area


def _nearest(value: np.ndarray, palette: dict[str, tuple[int, int, int]], bar: Bar) -> str | None:
    distance = {name: float(np.linalg.norm(value - np.array(paint))) for name, paint in palette.items()}
    name = min(distance, key=distance.__getitem__)
    return name if distance[name] <= bar.colour else None


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@cache
def _ideal(shape: str) -> tuple[np.ndarray, float, float]:
    """A shape filling its box (bool ``[48, 48]``), the box's height over width, and its area at radius 1."""
    radius = 200
    mask = np.asarray(shape_mask(shape, 300, 300, radius)) > 0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    square = np.asarray(Image.fromarray(box).resize((_SIDE, _SIDE), Image.Resampling.NEAREST))
    return square, box.shape[0] / box.shape[1], float(mask.sum()) / radius**2
