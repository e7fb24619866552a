"""Input images: from the bytes of an untrusted file to an array of pixels.

Size, format and number of frames are read from a file's header and checked before any of it is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.Image import Transpose

from raycache.protocol.errors import RequestError, invalid

__all__ = ["ImageSource", "OpenedImage", "as_image", "as_mask", "open_image"]

#: An image as a Python caller may pass it: pixels, a file, its bytes, or a Pillow image.
ImageSource = np.ndarray | Image.Image | Path | bytes

_FORMATS = ("PNG", "JPEG", "WEBP")
_READ = ["png", "jpeg", "webp"]
#: Maximum pixels for Python callers, who decode in their own process; the service checks its own limit.
_MOST_PIXELS = 1 << 27
#: Each scan of a JPEG costs a pass over all pixels; usual progressive ones have about ten.
_MOST_SCANS = 100
#: The operation that undoes each EXIF orientation.
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
#: First bytes of common formats that are not supported: the error names them.
_OTHERS = {
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"%PDF": "pdf",
    b"<svg": "svg",
    b"<?xml": "xml",
    b"\xff\x0a": "jpeg xl",
    b"\0\0\0\x0cJXL ": "jpeg xl",
}


@dataclass(frozen=True)
class OpenedImage:
    """A file whose header was read and is within the limits.

    Attributes:
        field: name of the request's field, for messages.
        image: Pillow's image, not decoded yet.
    """

    field: str
    image: Image.Image

    @property
    def pixels(self) -> int:
        """Width x height."""
        return self.image.width * self.image.height

    def decoded(self) -> np.ndarray:
        """The image upright, on white where it is transparent: uint8 [height, width, 3], contiguous.

        Raises:
            RequestError: 400.
        """
        with _refused_by(self.field):
            return _rgb(self._upright())

    def decoded_mask(self) -> np.ndarray:
        """The mask: uint8 [height, width], 255 where the image is generated again and 0 elsewhere.

        Marked are transparent pixels, as in OpenAI's API, or white ones, as in diffusers, if all are opaque.

        Raises:
            RequestError: 400.
        """
        with _refused_by(self.field):
            return _redrawn(self._upright())

    def _upright(self) -> Image.Image:
        self.image.load()
        turn = _UPRIGHT.get(_orientation(self.image))
        return self.image if turn is None else self.image.transpose(turn)


def open_image(data: bytes, field: str, *, max_bytes: int, max_pixels: int) -> OpenedImage:
    """Read the header of ``data``.

    Raises:
        RequestError: 400: empty, too large in bytes or pixels, animated, broken, or not a PNG, JPEG or WebP.
    """
    if not data:
        raise invalid(field, "the file is empty")
    if len(data) > max_bytes:
        raise invalid(field, f"the file has {len(data)} bytes, at most {max_bytes} are allowed here")
    if data[:4] == b"RIFF":
        # Pillow's WebP decoder allocates the whole canvas twice when the file is opened.
        _check_webp(data, field, max_pixels)
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) > _MOST_SCANS:
        raise invalid(field, f"a jpeg with {scans} scans, at most {_MOST_SCANS} are allowed")
    with _refused_by(field):
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.UnidentifiedImageError:
            raise _unknown(field, data) from None
        # A second frame of a JPEG is another view or a gain map of the same photo: the first is the image.
        frames = 1 if data[:2] == b"\xff\xd8" else getattr(image, "n_frames", 1)
    _check(field, image.size, frames, max_pixels)
    return OpenedImage(field, image)


def as_image(source: ImageSource, field: str = "image") -> np.ndarray:
    """Pixels of an image in any supported form: uint8 [height, width, 3], contiguous.

    Args:
        source: an array uint8 [height, width, 3] (RGB); a Pillow image; the bytes or the ``Path`` of a file.
        field: name of the request's field, for messages.

    Raises:
        RequestError: 400: it is none of these, or broken.
        OSError: the file cannot be read.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            reason = f"an array must be uint8 [height, width, 3], got {source.dtype} {list(source.shape)}"
            raise invalid(field, reason)
        return np.ascontiguousarray(source)
    if isinstance(source, Image.Image):
        return OpenedImage(field, source).decoded()
    return _of_caller(source, field).decoded()


def as_mask(source: ImageSource, field: str = "mask") -> np.ndarray:
    """A mask in any supported form: uint8 [height, width], 255 where the image is generated again, else 0.

    Args:
        source: an array, bool or uint8 [height, width], marked like that; else as :func:`as_image`, where transparent
            pixels are marked, or white ones if all are opaque.
        field: name of the request's field, for messages.

    Raises:
        RequestError: 400: it is none of these, or broken.
        OSError: the file cannot be read.
    """
    if isinstance(source, np.ndarray):
        if source.dtype not in (np.uint8, np.bool_) or source.ndim != 2 or not source.size:
            reason = f"an array must be bool or uint8 [height, width], got {source.dtype} {list(source.shape)}"
            raise invalid(field, reason)
        return _two_valued(source if source.dtype == np.bool_ else source >= 128)
    if isinstance(source, Image.Image):
        return OpenedImage(field, source).decoded_mask()
    return _of_caller(source, field).decoded_mask()


def _of_caller(source: object, field: str) -> OpenedImage:
    if isinstance(source, Path):
        source = source.read_bytes()
    if not isinstance(source, bytes):
        reason = f"must be an array, a Pillow image, bytes or a pathlib.Path, got {type(source).__name__}"
        raise invalid(field, reason)
    return open_image(source, field, max_bytes=len(source), max_pixels=_MOST_PIXELS)


def _check(field: str, size: tuple[int, int], frames: int, max_pixels: int) -> None:
    width, height = size
    if not width * height:
        raise invalid(field, f"has {width}x{height} pixels")
    if width * height > max_pixels:
        reason = f"{width}x{height} is {width * height} pixels, at most {max_pixels} are allowed here"
        raise invalid(field, reason)
    if frames > 1:
        raise invalid(field, f"is animated ({frames} frames); send one frame")


def _check_webp(data: bytes, field: str, max_pixels: int) -> None:
    """Check size and animation from the first chunk of a WebP; without them Pillow refuses the file."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return
    if kind == b"VP8X":
        size = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        _check(field, size, 2 if body[0] & 2 else 1, max_pixels)
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        _check(field, ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), 1, max_pixels)
    elif kind == b"VP8 ":
        size = int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
        _check(field, size, 1, max_pixels)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 0 if missing or invalid."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # broken metadata does not make the image unusable
        return 0
    return value if isinstance(value, int) else 0


def _rgb(image: Image.Image) -> np.ndarray:
    """Palettes, greys, CMYK and 16 bits to RGB; colour profiles are not applied."""
    if image.mode.startswith("I"):
        return np.repeat(_high_byte(image)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return np.asarray(image.convert("RGB"))


def _redrawn(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        return _two_valued(_high_byte(image) >= 128)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
        if (alpha < 255).any():
            return _two_valued(alpha < 128)
    return _two_valued(np.asarray(image.convert("RGB").convert("L")) >= 128)


def _high_byte(image: Image.Image) -> np.ndarray:
    """Greys of 16 bits in 8: Pillow's own conversion clips everything above 255."""
    return (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)


def _two_valued(redrawn: np.ndarray) -> np.ndarray:
    return np.where(redrawn, np.uint8(255), np.uint8(0))


@contextmanager
def _refused_by(field: str) -> Iterator[None]:
    """Turn errors of the decoder into refusals: Pillow raises many types for broken files."""
    try:
        yield
    except (RequestError, MemoryError):
        raise
    except Exception as error:
        raise invalid(field, f"the file is broken: {str(error)[:100] or type(error).__name__}") from None


def _unknown(field: str, data: bytes) -> RequestError:
    head = data[:64].lstrip()
    name = next((name for start, name in _OTHERS.items() if head.startswith(start)), None)
    if data[4:8] == b"ftyp":
        name = "avif" if data[8:11] == b"avi" else "heic or a similar format"
    if name is None:
        return invalid(field, "is not a supported image", _READ)
    return invalid(field, f"{name} is not supported", _READ)
