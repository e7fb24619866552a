"""Writes frames to a video file and its thumbnail, and images to files."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from raycache.protocol.sound import Sound
from raycache.store_settings import VideoCodec

__all__ = ["THUMBNAIL_TYPE", "VIDEO_TYPE", "write_thumbnail", "write_video"]

VIDEO_TYPE, THUMBNAIL_TYPE = "video/mp4", "image/webp"
#: FFmpeg's encoder of each codec, the constant rate factor at which its losses are hardly seen, and how fast it works.
_ENCODERS: dict[VideoCodec, tuple[str, int, dict[str, str]]] = {
    "h264": ("libx264", 18, {"preset": "veryfast"}),
    "vp9": ("libvpx-vp9", 28, {"b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}),
    "av1": ("libsvtav1", 30, {"preset": "9"}),
}
#: Samples a second that AAC can say.
_AAC_RATES = frozenset(av.codec.Codec("aac", "w").audio_rates or ())
#: Bits a second of sound, at which its losses are hardly heard.
_AAC_BITS = 192_000
# Its encoder greets on stderr otherwise; 1 = errors only.
os.environ.setdefault("SVT_LOG", "1")
#: Pixels of the longer side of a thumbnail.
_THUMBNAIL_SIDE = 512


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: float,
    codec: VideoCodec = "h264",
    crf: int | None = None,
    sound: Sound | None = None,
) -> None:
    """An MP4 whose index comes first, so that players begin before they have all of it.

    Args:
        path: of the file, which must be a real one: FFmpeg opens it again to move the index.
        frames: uint8, [frames, height, width, 3], RGB. A side of an odd number of pixels gets its last row or column
            twice: 4:2:0, which alone plays everywhere, has a colour for two by two pixels.
        fps: frames a second.
        codec: of the picture; sound is AAC.
        crf: constant rate factor; None: one at which losses are hardly seen.
        sound: what is heard with the frames; what is longer is cut off.

    Raises:
        OSError: no room, or FFmpeg cannot encode them.
    """
    encoder, usual, options = _ENCODERS[codec]
    _, height, width, _ = frames.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(encoder, rate, options={**options, "crf": str(usual if crf is None else crf)})
        assert isinstance(stream, av.VideoStream)  # as each of these encoders makes
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        # Said, or players guess by the size, and colours are off in some.
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
        stream.codec_context.color_primaries, stream.codec_context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        heard = None if sound is None else _Heard(container, sound)
        for index, pixels in enumerate(frames, 1):
            padded = np.pad(pixels, odd, mode="edge") if height % 2 or width % 2 else pixels
            frame = av.VideoFrame.from_ndarray(padded, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
            if heard:
                heard.up_to(index / fps)
        container.mux(stream.encode(None))
        if heard:
            heard.end()


class _Heard:
    """A track of sound in ``container``, written piece by piece beside the frames."""

    def __init__(self, container: OutputContainer, sound: Sound) -> None:
        self._container, self._sound, self._written = container, sound, 0
        self._layout = "mono" if sound.samples.shape[1] == 1 else "stereo"
        # Of other rates AAC has no word; the encoder brings what it gets to its own.
        rate = sound.rate if sound.rate in _AAC_RATES else 48_000
        self._stream = container.add_stream("aac", rate=rate, layout=self._layout)
        self._stream.bit_rate = _AAC_BITS

    def up_to(self, seconds: float) -> None:
        """All that is heard until then."""
        until = round(seconds * self._sound.rate)
        if (piece := self._sound.samples[self._written : until, :2]).size:
            planes = np.ascontiguousarray(piece.T, dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=self._layout)
            frame.sample_rate, frame.pts = self._sound.rate, self._written
            frame.time_base = Fraction(1, self._sound.rate)
            self._container.mux(self._stream.encode(frame))
            self._written += len(piece)

    def end(self) -> None:
        """What the encoder still holds."""
        self._container.mux(self._stream.encode(None))


def write_thumbnail(path: Path, frame: np.ndarray) -> None:
    """One frame, uint8 [height, width, 3], made small, as WebP.

    Raises:
        OSError: no room.
    """
    image = Image.fromarray(frame)
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    image.save(path, "webp", quality=80)
