"""Image files, valid and unusual ones."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["apng", "chunk", "file", "jpeg_of_size", "png_of", "scene", "webp_of_size", "with_checksums"]


def scene(width: int = 24, height: int = 16) -> np.ndarray:
    """Red top left, green top right, blue bottom left, grey bottom right, so that all rotations differ."""
    image = np.full((height, width, 3), 128, np.uint8)
    image[: height // 2, : width // 2] = 250, 10, 20
    image[: height // 2, width // 2 :] = 10, 240, 30
    image[height // 2 :, : width // 2] = 20, 30, 230
    return image


def file(pixels: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """``pixels`` as a file."""
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG built by hand from uncompressed ``rows`` with filter bytes; ``more`` chunks come before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def apng() -> bytes:
    """An animated PNG."""
    return file(Image.new("RGB", (8, 8), "red"), save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header claims a larger size."""
    data = bytearray(file(scene(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of_size(width: int, height: int) -> bytes:
    """A small WebP whose canvas claims a larger size."""
    inner = file(scene(), "WEBP")[12:]
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def with_checksums(data: bytes) -> bytes:
    """Fix the checksums of a PNG whose chunks were changed; other bytes are returned unchanged."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = data[:8], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        out += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return out
