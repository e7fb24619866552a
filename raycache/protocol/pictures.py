"""Input pictures: from the bytes of an untrusted file to an array of pixels.

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

__all__ = ["OpenedPicture", "PictureSource", "as_mask", "as_picture", "open_picture"]

#: What a Python caller may give as a picture: pixels, a file, its bytes, or what Pillow made of it.
PictureSource = np.ndarray | Image.Image | Path | bytes

_FORMATS = ("PNG", "JPEG", "WEBP")
_READ = ["png", "jpeg", "webp"]
#: Pixels of a Python caller's picture, who decodes in a process of their own; the service's limit is checked there.
_MOST_PIXELS = 1 << 27
#: A JPEG of many scans costs a pass over all pixels for each; progressive ones in use have about ten.
_MOST_SCANS = 100
#: How what EXIF says of a picture's orientation is undone.
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
#: First bytes of formats that people send and that are not read: the refusal calls them by their names.
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
class OpenedPicture:
    """A file whose header was read and is within the bounds.

    Attributes:
        field: of the request, for messages.
        image: not decoded yet.
    """

    field: str
    image: Image.Image

    @property
    def pixels(self) -> int:
        """Width x height."""
        return self.image.width * self.image.height

    def decoded(self) -> np.ndarray:
        """The picture upright, on white where it is transparent: uint8 [height, width, 3], contiguous.

        Raises:
            RequestError: 400.
        """
        with _refused_by(self.field):
            return _rgb(self._upright())

    def decoded_mask(self) -> np.ndarray:
        """What is drawn anew: uint8 [height, width], 255 there and 0 elsewhere.

        It is what is transparent, as OpenAI's API has it, or, where all is opaque, what is white, as diffusers has it.

        Raises:
            RequestError: 400.
        """
        with _refused_by(self.field):
            return _redrawn(self._upright())

    def _upright(self) -> Image.Image:
        self.image.load()
        turn = _UPRIGHT.get(_orientation(self.image))
        return self.image if turn is None else self.image.transpose(turn)


def open_picture(data: bytes, field: str, *, max_bytes: int, max_pixels: int) -> OpenedPicture:
    """Read the header of ``data``.

    Raises:
        RequestError: 400: empty, too large in bytes or pixels, animated, broken, or no PNG, JPEG or WebP.
    """
    if not data:
        raise invalid(field, "the file is empty")
    if len(data) > max_bytes:
        raise invalid(field, f"the file has {len(data)} bytes, at most {max_bytes} are allowed here")
    if data[:4] == b"RIFF":
        # Pillow's decoder of WebP makes room for the whole canvas, and for a second one, when it is opened.
        _check_webp(data, field, max_pixels)
    if data[:2] == b"\xff\xd8" and (scans := data.count(b"\xff\xda")) > _MOST_SCANS:
        raise invalid(field, f"a jpeg of {scans} scans, at most {_MOST_SCANS} are read")
    with _refused_by(field):
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.UnidentifiedImageError:
            raise _unknown(field, data) from None
        # A second frame of a JPEG is another view or a gain map of the same shot: the first is the picture.
        frames = 1 if data[:2] == b"\xff\xd8" else getattr(image, "n_frames", 1)
    _check(field, image.size, frames, max_pixels)
    return OpenedPicture(field, image)


def as_picture(source: PictureSource, field: str = "image") -> np.ndarray:
    """Pixels of whatever a Python caller has: uint8 [height, width, 3], contiguous.

    Args:
        source: an array uint8 [height, width, 3] (RGB); an image of Pillow; the bytes or the ``Path`` of a file.
        field: of the request, for messages.

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
        return OpenedPicture(field, source).decoded()
    return _of_caller(source, field).decoded()


def as_mask(source: PictureSource, field: str = "mask") -> np.ndarray:
    """A mask of whatever a Python caller has: uint8 [height, width], 255 where something is drawn anew, else 0.

    Args:
        source: an array, bool or uint8 [height, width], that says it so; else as :func:`as_picture`, where what is
            transparent is drawn anew, or what is white where all is opaque.
        field: of the request, for messages.

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
        return OpenedPicture(field, source).decoded_mask()
    return _of_caller(source, field).decoded_mask()


def _of_caller(source: object, field: str) -> OpenedPicture:
    if isinstance(source, Path):
        source = source.read_bytes()
    if not isinstance(source, bytes):
        reason = f"must be an array, an image of Pillow, bytes or a pathlib.Path, got {type(source).__name__}"
        raise invalid(field, reason)
    return open_picture(source, field, max_bytes=len(source), max_pixels=_MOST_PIXELS)


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
    """What the first chunk of a WebP says of its size, and whether it moves; one that says neither Pillow refuses."""
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
    """1 to 8, as EXIF counts; 0 where nothing, or nothing of use, is said."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # a picture is no worse for what is broken beside it
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
    """Greys of 16 bits in eight: Pillow's own conversion cuts off all above 255."""
    return (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)


def _two_valued(redrawn: np.ndarray) -> np.ndarray:
    return np.where(redrawn, np.uint8(255), np.uint8(0))


@contextmanager
def _refused_by(field: str) -> Iterator[None]:
    """What a file from anybody makes of a decoder: Pillow raises whatever its parsers run into."""
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
        name = "avif" if data[8:11] == b"avi" else "heic or another of its kind"
    if name is None:
        return invalid(field, "is no picture that can be read", _READ)
    return invalid(field, f"{name} is not read here", _READ)
