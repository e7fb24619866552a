"""Input images of every kind that people have, and of those that nobody should send."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from raycache.protocol.errors import RequestError
from raycache.protocol.input_images import as_image, as_mask, open_image
from tests.helpers.image_files import apng, chunk, file, jpeg_of_size, png_of, scene, webp_of_size

MOST_BYTES, MOST_PIXELS = 1 << 20, 1 << 16


def decoded(data: bytes) -> np.ndarray:
    image = open_image(data, "image", max_bytes=MOST_BYTES, max_pixels=MOST_PIXELS).decoded()
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.flags.c_contiguous
    return image


def mask_of(data: bytes) -> np.ndarray:
    return open_image(data, "mask", max_bytes=MOST_BYTES, max_pixels=MOST_PIXELS).decoded_mask()


def refused(data: bytes) -> str:
    with pytest.raises(RequestError) as caught:
        decoded(data)
    assert (caught.value.status, caught.value.param) == (400, "image")
    assert len(caught.value.message) < 300
    return caught.value.message


def near(image: np.ndarray, wanted: np.ndarray, within: int) -> bool:
    """But for the seams, where lossy formats blend."""
    assert image.shape == wanted.shape
    inner = np.abs(image.astype(int) - wanted)[2:6, 2:10]
    return bool(inner.max() <= within)


@pytest.mark.parametrize(
    ("format", "options", "within"),
    [
        ("PNG", {}, 0),
        ("PNG", {"compress_level": 9}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 90}, 12),
        ("JPEG", {"quality": 95}, 8),
        ("JPEG", {"quality": 95, "progressive": True}, 8),
        ("JPEG", {"quality": 95, "subsampling": 2}, 12),
    ],
)
def test_formats(format: str, options: dict, within: int):
    assert near(decoded(file(scene(), format, **options)), scene(), within)


def test_what_is_no_red_green_and_blue():
    image = Image.fromarray(scene())
    grey = np.asarray(image.convert("L"))
    assert (decoded(file(image.convert("L"))) == grey[:, :, None]).all()
    assert (decoded(file(image.convert("LA"))) == grey[:, :, None]).all()
    assert set(np.unique(decoded(file(image.convert("1"))))) == {0, 255}
    assert (decoded(file(image.quantize(8))) == scene()).mean() > 0.9
    assert near(decoded(file(image.convert("CMYK"), "JPEG", quality=95)), scene(), 40)
    assert near(decoded(file(image.convert("L"), "JPEG", quality=95)), np.repeat(grey[:, :, None], 3, 2), 8)


def test_sixteen_bits_keep_their_upper_eight():
    """Pillow's own conversion of greys makes white of all above 255."""
    grey = np.array([[0, 0x0180, 0x7FFF, 0xFFFF]], ">u2")
    assert decoded(png_of(4, 1, 16, 0, b"\0" + grey.tobytes()))[0, :, 0].tolist() == [0, 1, 127, 255]
    colour = np.array([0xFFFF, 0x8000, 0x0100], ">u2")
    assert decoded(png_of(1, 1, 16, 2, b"\0" + colour.tobytes())).tolist() == [[[255, 128, 1]]]
    with_alpha = np.array([0xFFFF, 0x8000, 0x0100, 0xFFFF], ">u2")
    assert decoded(png_of(1, 1, 16, 6, b"\0" + with_alpha.tobytes())).tolist() == [[[255, 128, 1]]]


def test_what_is_transparent_is_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 128)])
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        opaque, clear, half = decoded(file(image, format, **options))[0].tolist()
        assert (opaque, clear) == ([200, 0, 0], [255, 255, 255])
        assert half == pytest.approx([227, 127, 127], abs=1)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 9, 9, 200, 0, 0])
    assert decoded(file(palette, transparency=0)).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    keyed = png_of(2, 1, 8, 2, b"\0" + bytes([9, 9, 9, 200, 0, 0]), chunk(b"tRNS", struct.pack(">HHH", 9, 9, 9)))
    assert decoded(keyed).tolist() == [[[255, 255, 255], [200, 0, 0]]]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright(format: str, orientation: int):
    turned = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }[orientation](scene())
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}}[format]
    data = file(np.ascontiguousarray(turned), format, exif=exif, **options)
    assert near(decoded(data), scene(), 12 if format == "JPEG" else 0)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 40, b"Exif\0\0MM\0*\0\0\0\x08\0\x01"]
)
def test_an_image_is_no_worse_for_what_is_broken_beside_it(exif: bytes):
    assert near(decoded(file(scene(), "JPEG", quality=95, exif=exif)), scene(), 8)
    odd = Image.Exif()
    odd[0x0112] = 77
    assert (decoded(file(scene(), exif=odd)) == scene()).all()
    assert (decoded(file(scene(), icc_profile=b"no profile")) == scene()).all()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (file(Image.new("RGB", (4, 4)), "GIF"), "gif"),
        (file(Image.new("RGB", (4, 4)), "BMP"), "bmp"),
        (file(Image.new("RGB", (4, 4)), "TIFF"), "tiff"),
        (file(Image.new("RGB", (4, 4)), "PDF"), "pdf"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "avif"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "heic"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg"),
        (b"  \n<?xml version='1.0'?><svg/>", "xml"),
        (b"\0\0\0\x0cJXL \r\n", "jpeg xl"),
    ],
)
def test_other_formats_are_called_by_their_names(data: bytes, named: str):
    assert named in refused(data)
    assert "png, jpeg, webp" in refused(data)


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"\x89PNG", b"\xff\xd8", b"RIFF", b"RIFF\0\0\0\0WEBPVP8X"])
def test_what_is_no_image(data: bytes):
    assert refused(data)


def test_what_moves():
    frames = [Image.new("RGB", (8, 8), name) for name in ("blue", "green")]
    assert "animated (2 frames)" in refused(apng())
    assert "animated" in refused(file(Image.new("RGB", (8, 8), "red"), "WEBP", save_all=True, append_images=frames))
    assert "gif" in refused(file(Image.new("RGB", (8, 8), "red"), "GIF", save_all=True, append_images=frames))


def test_of_several_views_of_one_shot_the_first_is_the_image():
    """What telephones write beside a photograph does not make it a film."""
    data = file(Image.fromarray(scene()), "MPO", save_all=True, append_images=[Image.new("RGB", (24, 16))], quality=95)
    assert near(decoded(data), scene(), 8)


@pytest.mark.parametrize(
    "data",
    [
        png_of(60_000, 60_000, 8, 2, b""),
        png_of(2**31 - 1, 2**31 - 1, 8, 2, b""),
        png_of(1 << 17, 1, 1, 0, bytes(1 + (1 << 14))),
        jpeg_of_size(65_500, 65_500),
        webp_of_size(16_383, 16_383),
        webp_of_size(1 << 24, 1 << 8),
        file(np.zeros((257, 256, 3), np.uint8)),
        file(np.zeros((257, 256, 3), np.uint8), "WEBP"),
        file(np.zeros((257, 256, 3), np.uint8), "WEBP", lossless=True),
    ],
)
def test_too_many_pixels_are_refused_by_the_header(data: bytes, monkeypatch: pytest.MonkeyPatch):
    def decode(*_: object) -> None:
        raise AssertionError("decoded, although its header said enough")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with warnings.catch_warnings(action="ignore"):  # Pillow's own, of images of more than 89 million pixels
        assert "pixels" in refused(data)
    assert open_image(file(np.zeros((256, 256, 3), np.uint8)), "image", max_bytes=MOST_BYTES, max_pixels=MOST_PIXELS)


def test_a_small_canvas_around_a_large_image():
    """The header that is checked is not the one that is decoded."""
    large = file(np.zeros((300, 300, 3), np.uint8), "WEBP")[12:]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (7).to_bytes(3, "little") * 2 + large
    assert "broken" in refused(b"RIFF" + struct.pack("<I", len(body)) + body)


def test_bounds_of_bytes_and_scans_and_of_what_stands_beside():
    rows = b"\0" + bytes(3)
    assert "bytes" in refused(file(scene()) + bytes(MOST_BYTES))
    bomb = zlib.compress(bytes(10 << 20), 9)
    assert "broken" in refused(png_of(1, 1, 8, 2, rows, chunk(b"iCCP", b"x\0\0" + bomb)))
    assert "broken" in refused(png_of(1, 1, 8, 2, rows, chunk(b"zTXt", b"x\0\0" + bomb)))
    scans = file(scene(), "JPEG", progressive=True)
    at = scans.rindex(b"\xff\xda")
    assert "scans" in refused(scans[:at] + scans[at:-2] * 100 + b"\xff\xd9")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.97])
def test_the_end_is_missing(format: str, share: float):
    data = file(np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8), format)
    refused(data[: int(share * len(data))])


def test_masks():
    wanted = np.zeros((2, 4), np.uint8)
    wanted[:, 2:] = 255
    clear = np.full((2, 4, 4), 200, np.uint8)
    clear[..., 3] = 255 - wanted
    white = np.repeat(wanted[:, :, None], 3, 2)
    opaque = np.concatenate([white, np.full((2, 4, 1), 255, np.uint8)], 2)
    for name, image in {
        "transparent": Image.fromarray(clear),
        "grey and transparent": Image.fromarray(clear).convert("LA"),
        "white": Image.fromarray(white),
        "white, in a file with an alpha that says nothing": Image.fromarray(opaque),
        "grey": Image.fromarray(wanted),
        "one bit": Image.fromarray(wanted).convert("1"),
        "a palette": Image.fromarray(white).quantize(2),
    }.items():
        assert mask_of(file(image)).tolist() == wanted.tolist(), name
    assert mask_of(png_of(2, 1, 16, 0, b"\0" + np.array([0x7FFF, 0x8000], ">u2").tobytes())).tolist() == [[0, 255]]
    assert mask_of(file(Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)))).tolist() == [[0, 0, 255, 255]]


def test_a_mask_stands_upright_as_its_image_does():
    drawing = Image.new("L", (6, 4))
    ImageDraw.Draw(drawing).rectangle((0, 0, 1, 1), fill=255)
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = mask_of(file(drawing, exif=exif))
    assert mask.shape == (6, 4)
    assert mask[0, -1] == 255
    assert mask[-1, 0] == 0


def test_what_python_has(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(file(scene()))
    for source in (scene(), Image.fromarray(scene()), path, path.read_bytes(), np.asfortranarray(scene())):
        image = as_image(source)
        assert (image == scene()).all()
        assert image.flags.c_contiguous
    own = scene()
    assert as_image(own) is own
    mask = np.zeros((2, 2), np.uint8)
    mask[0, 0] = 255
    for source in (mask, mask > 0, Image.fromarray(mask), file(mask)):
        assert as_mask(source).tolist() == [[255, 0], [0, 0]]


@pytest.mark.parametrize(
    "source",
    [
        "a.png",
        None,
        3,
        scene().astype(float),
        scene()[:, :, 0],
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
    ids=lambda source: str(getattr(source, "shape", source)),
)
def test_what_python_has_and_is_no_image(source: object):
    with pytest.raises(RequestError, match="must be") as caught:
        as_image(source)  # type: ignore[arg-type]
    assert caught.value.param == "image"
    if not isinstance(source, np.ndarray) or source.ndim > 2:
        with pytest.raises(RequestError, match="must be"):
            as_mask(source)  # type: ignore[arg-type]


def test_an_image_that_was_closed(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(file(scene()))
    image = Image.open(path)
    image.close()
    with pytest.raises(RequestError, match="broken"):
        as_image(image)
    with pytest.raises(FileNotFoundError):
        as_image(tmp_path / "b.png")
