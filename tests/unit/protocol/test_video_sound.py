"""Sound in video files is what was made, for as long as there are frames."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from raycache.engine.convert import _as_shown
from raycache.protocol.schemas import GenerationResult
from raycache.protocol.sound import Sound
from raycache.protocol.video_files import write_video

FRAMES = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), np.uint8)


def tone(rate: int, seconds: float = 1.0, channels: int = 2) -> Sound:
    """440 Hz, and in a second channel 1000 Hz more quietly."""
    times = np.arange(round(rate * seconds)) / rate
    waves = [0.5 * np.sin(2 * np.pi * 440 * times), 0.2 * np.sin(2 * np.pi * 1000 * times)]
    return Sound(np.stack(waves[:channels], axis=1).astype(np.float32), rate)


def heard(path: Path) -> tuple[np.ndarray, int]:
    """[channels, samples], and samples a second."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        assert (stream.codec_context.name, len(container.streams.video)) == ("aac", 1)
        return np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1), stream.rate


def pitch(wave: np.ndarray, rate: int) -> float:
    """Of the loudest tone, in Hz."""
    spectrum = np.abs(np.fft.rfft(wave))
    return float(np.fft.rfftfreq(len(wave), 1 / rate)[spectrum.argmax()])


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize(("rate", "shown"), [(24_000, 24_000), (48_000, 48_000), (20_000, 48_000)])
def test_two_channels_are_heard_as_they_were_made(tmp_path: Path, codec: str, rate: int, shown: int):
    write_video(tmp_path / "video.mp4", FRAMES, 24, codec, sound=tone(rate))
    waves, played = heard(tmp_path / "video.mp4")
    assert (played, len(waves)) == (shown, 2)
    assert waves.shape[1] / played == pytest.approx(1.0, abs=0.1)
    assert [pitch(wave, played) for wave in waves] == pytest.approx([440, 1000], abs=5)
    middle = waves[:, waves.shape[1] // 4 : 3 * waves.shape[1] // 4]
    assert middle.std(axis=1) == pytest.approx(np.array([0.5, 0.2]) / np.sqrt(2), rel=0.05)


def test_what_is_longer_than_the_frames_is_cut_and_one_channel_stays_one(tmp_path: Path):
    write_video(tmp_path / "video.mp4", FRAMES, 24, sound=tone(16_000, 5.0, channels=1))
    waves, rate = heard(tmp_path / "video.mp4")
    assert len(waves) == 1
    assert waves.shape[1] / rate == pytest.approx(1.0, abs=0.2)
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert len(list(container.decode(video=0))) == 24


def test_a_result_is_saved_with_its_sound(tmp_path: Path):
    for sound, streams in ((tone(24_000), 1), (None, 0)):
        GenerationResult(images=[FRAMES], seeds=[1], fps=24.0, sound=sound).save(str(tmp_path / "video.mp4"))
        with av.open(str(tmp_path / "video.mp4")) as container:
            assert len(container.streams.audio) == streams


def test_sound_of_frames_that_are_shown_faster_is_faster():
    sound = tone(24_000)
    assert _as_shown(sound, 48.0, 24.0).rate == 48_000
    assert _as_shown(sound, 24.0, 24.0).rate == 24_000
    assert _as_shown(None, 24.0, 24.0) is None
