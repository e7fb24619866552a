"""Which rows of a transformer's call belong to which image, when each image has its own options.

Guidance in one batch (SD3, Z-Image, LTX, CogVideoX, Mochi, PixArt) gives each image several rows, its negative and its
positive half. Rows of one image hold the same latents, which identifies them. Counting alone cannot: the halves may be
stacked one after the other, as in diffusers' pipelines, or row by row, and a wrong guess would silently give an image
the threshold of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

__all__ = ["for_rows", "images_of_rows"]

_Item = TypeVar("_Item")


def for_rows(each: Sequence[_Item], rows: int, latents: Any) -> list[_Item]:
    """One item for every row of a call, from one item per image or one for all.

    Raises:
        ValueError: see :func:`images_of_rows`.
    """
    return [each[image] for image in images_of_rows(len(each), rows, latents)]


def images_of_rows(images: int, rows: int, latents: Any) -> list[int]:
    """The image of each row of a transformer's call.

    Args:
        images: number of images that options were given for; 1 = all rows alike.
        rows: leading size of the call's batch.
        latents: the transformer's input, a tensor or a list with an entry for each row.

    Raises:
        ValueError: the rows are not a multiple of the images, or do not repeat that many images' latents.
    """
    repeats, rest = divmod(rows, images)
    announced = f"options for {images} images, but the transformer was called with a batch of {rows}"
    if rest:
        raise ValueError(f"{announced}: give one for all, one for each image or one for each row")
    if images == 1 or repeats == 1:
        return [row % images for row in range(rows)]
    half_after_half = [row % images for row in range(rows)]
    row_by_row = [row // repeats for row in range(rows)]
    for order in (half_after_half, row_by_row):  # equal images match both: then the order of diffusers' pipelines
        if _rows_repeat(latents, order):
            return order
    raise ValueError(
        f"{announced} rows that do not hold the latents of {images} images {repeats} times each, so it is unknown "
        "which rows belong to which: give one for each image (num_images_per_prompt counts) or one for each row"
    )


def _rows_repeat(latents: Any, order: list[int]) -> bool:
    """Whether every row holds the latents of the first row of its image."""
    return (
        latents is not None
        and len(latents) == len(order)
        and all(_equal(latents[row], latents[order.index(image)]) for row, image in enumerate(order))
    )


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(left, right)
    return len(left) == len(right) and all(
        map(_equal, left, right)
    )  # Z-Image's omni form: a list of images for each row
