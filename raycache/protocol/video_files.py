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
from raycache.protocol.thread_priority import usual_priority
from raycache.store_settings import VideoCodec

__all__ = ["THUMBNAIL_TYPE", "VIDEO_TYPE", "write_thumbnail", "write_video"]

VIDEO_TYPE, THUMBNAIL_TYPE = "video/mp4", "image/webp"
#: FFmpeg's encoder of each codec, a constant rate factor with hardly visible losses, and its speed options.
_ENCODERS: dict[VideoCodec, tuple[str, int, dict[str, str]]] = {
    "h264": ("libx264", 18, {"preset": "veryfast"}),
    "vp9": ("libvpx-vp9", 28, {"b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}),
    "av1": ("libsvtav1", 30, {"preset": "9"}),
}
#: Sample rates that AAC supports.
_AAC_RATES = frozenset(av.codec.Codec("aac", "w").audio_rates or ())
#: Bits per second of sound, with hardly audible losses.
_AAC_BITS = 192_000
# Otherwise its encoder prints a banner to stderr; 1 = errors only.
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
    """Write an MP4 with its index first, so that players can start before the download ends.

    Args:
        path: path of the file, which must be a regular file: FFmpeg reopens it to move the index.
        frames: uint8, [frames, height, width, 3], RGB. If a side has an odd number of pixels, its last row or column is
            repeated: 4:2:0, the only format that plays everywhere, has one colour for two by two pixels.
        fps: frames per second.
        codec: codec of the video; sound is AAC.
        crf: constant rate factor; None: one with hardly visible losses.
        sound: the sound of the frames; cut off if longer.

    Raises:
        OSError: no space left, or FFmpeg cannot encode them.
    """
    encoder, usual, options = _ENCODERS[codec]
    _, height, width, _ = frames.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(encoder, rate, options={**options, "crf": str(usual if crf is None else crf)})
        assert isinstance(stream, av.VideoStream)  # all of these encoders make one
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        # Set explicitly: some players guess from the size, and show wrong colours.
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
        stream.codec_context.color_primaries, stream.codec_context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        with usual_priority():
            stream.codec_context.open()  # not at the first frame, because it starts the encoder's threads
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
    """A sound track in ``container``, written piece by piece along with the frames."""

    def __init__(self, container: OutputContainer, sound: Sound) -> None:
        self._container, self._sound, self._written = container, sound, 0
        self._layout = "mono" if sound.samples.shape[1] == 1 else "stereo"
        # AAC does not support other rates; the encoder resamples to its own.
        rate = sound.rate if sound.rate in _AAC_RATES else 48_000
        self._stream = container.add_stream("aac", rate=rate, layout=self._layout)
        self._stream.bit_rate = _AAC_BITS

    def up_to(self, seconds: float) -> None:
        """Write the sound up to this time."""
        until = round(seconds * self._sound.rate)
        if (piece := self._sound.samples[self._written : until, :2]).size:
            planes = np.ascontiguousarray(piece.T, dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=self._layout)
            frame.sample_rate, frame.pts = self._sound.rate, self._written
            frame.time_base = Fraction(1, self._sound.rate)
            self._container.mux(self._stream.encode(frame))
            self._written += len(piece)

    def end(self) -> None:
        """Flush the encoder."""
        self._container.mux(self._stream.encode(None))


def write_thumbnail(path: Path, frame: np.ndarray) -> None:
    """Write one frame, uint8 [height, width, 3], scaled down, as WebP.

    Raises:
        OSError: no space left.
    """
    image = Image.fromarray(frame)
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    image.save(path, "webp", quality=80)
