"""Videos are what was drawn, in every codec, for sides of any length."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from raycache.protocol.sound import Sound
from raycache.protocol.video_files import write_thumbnail, write_video


def frames(count: int = 9, height: int = 64, width: int = 96) -> np.ndarray:
    """A slope of green that gets redder, on blue."""
    made = np.zeros((count, height, width, 3), np.uint8)
    made[..., 0] = np.linspace(0, 200, count)[:, None, None]
    made[..., 1] = np.linspace(30, 220, width)
    made[..., 2] = 90
    return made


def decoded(path: Path) -> tuple[av.VideoStream, np.ndarray]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream, np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


@pytest.mark.parametrize(("codec", "name"), [("h264", "h264"), ("vp9", "vp9"), ("av1", "libdav1d")])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97)])
def test_what_is_played_is_what_was_drawn(tmp_path: Path, codec: str, name: str, height: int, width: int):
    drawn = frames(height=height, width=width)
    write_video(tmp_path / "video.mp4", drawn, 16, codec)
    stream, shown = decoded(tmp_path / "video.mp4")
    assert stream.codec_context.name == name
    assert stream.average_rate == 16
    assert shown.shape == (9, height + height % 2, width + width % 2, 3)
    assert np.abs(shown[:, :height, :width].astype(int) - drawn).mean() < 5
    if width % 2:
        assert np.abs(shown[:, :, -1].astype(int) - shown[:, :, -2]).mean() < 5, "no black line at the edge"


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="not on Linux")
@pytest.mark.parametrize("codec", ["h264", "vp9", "av1"])
def test_no_encoder_leaves_or_has_a_thread_that_takes_its_core_from_all_others(tmp_path: Path, codec: str):
    """SVT-AV1 does, as root. Its own threads are seen while it encodes: the sound is asked for after each frame."""
    seen: set[int] = set()

    class Watching(np.ndarray):
        def __getitem__(self, key: Any) -> Any:
            seen.update(os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task"))
            return super().__getitem__(key)

    samples = np.zeros((9 * 1000, 1), np.float32).view(Watching)
    write_video(tmp_path / "video.mp4", frames(), 16, codec, sound=Sound(samples, 16000))
    assert seen == {os.SCHED_OTHER}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_the_index_comes_first_and_colours_are_named(tmp_path: Path):
    write_video(tmp_path / "video.mp4", frames(), 16)
    data = (tmp_path / "video.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    stream, _ = decoded(tmp_path / "video.mp4")
    context = stream.codec_context
    assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


@pytest.mark.parametrize(("count", "height", "width", "fps"), [(1, 64, 64, 23.976), (2, 1, 1, 0.5), (3, 16, 16, 120)])
def test_small_ones(tmp_path: Path, count: int, height: int, width: int, fps: float):
    write_video(tmp_path / "video.mp4", frames(count, height, width), fps)
    stream, shown = decoded(tmp_path / "video.mp4")
    assert len(shown) == count
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-3)


def test_a_smaller_factor_is_better(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
    sizes = []
    for crf in (5, None, 45):
        write_video(tmp_path / "video.mp4", noise, 16, crf=crf)
        sizes.append((tmp_path / "video.mp4").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_a_thumbnail_is_small_and_of_one_shape_with_its_frame(tmp_path: Path):
    write_thumbnail(tmp_path / "thumbnail.webp", frames(1, 720, 1280)[0])
    with Image.open(tmp_path / "thumbnail.webp") as image:
        assert (image.format, image.size) == ("WEBP", (512, 288))
