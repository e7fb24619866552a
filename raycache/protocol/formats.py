"""Images to bytes."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image

Format = Literal["png", "jpeg", "webp"]
MEDIA_TYPES: dict[Format, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
#: Maximum pixels of a side, for formats with a limit below five digits.
LONGEST_SIDE: dict[str, int] = {"jpeg": 65500, "webp": 16383}


def encode(pixels: np.ndarray, format: Format, quality: int = 100) -> bytes:
    """Encode one image.

    Args:
        pixels: uint8, [height, width, 3], RGB.
        format: container; png is lossless and ignores ``quality``.
        quality: percent, 0 to 100; Pillow's scale for jpeg and webp.

    Raises:
        OSError: a side is longer than :data:`LONGEST_SIDE`.
    """
    buffer = io.BytesIO()
    # Level 1: generated images hardly compress, and the default level costs four times the time for a few percent.
    options = {"compress_level": 1} if format == "png" else {"quality": quality}
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()
