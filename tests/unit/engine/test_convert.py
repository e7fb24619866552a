"""What a reply says besides its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from raycache.engine.convert import result_of
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import JobOutput
from tests.helpers.fake_gang import order


@pytest.mark.parametrize(
    ("kind", "size", "warned"), [("demo", "256x128", False), ("demo", "384x128", True), ("folder", "384x128", False)]
)
def test_the_bundled_model_warns_of_sizes_it_was_not_trained_at(kind: str, size: str, warned: bool):
    request = order(prompt="a red circle on a white background", size=size)
    output = JobOutput(np.zeros((1, 8, 8, 3), np.uint8), None, 0.1, 0.1, 0.1)
    model = Capabilities(kind=kind, num_blocks=57, num_heads=4, text_tokens=16, pipeline="FluxPipeline", token_side=16)
    warnings = result_of(request, output, 1.0, model).warnings
    assert any("128x128" in warning and size in warning for warning in warnings) == warned


@pytest.mark.parametrize(("previews", "count", "warned"), [(True, 2, False), (False, 2, True), (False, 0, False)])
def test_previews_that_a_model_cannot_make_are_told_of(previews: bool, count: int, warned: bool):
    request = order(partial_images=count)
    output = JobOutput(np.zeros((1, 8, 8, 3), np.uint8), None, 0.1, 0.1, 0.1)
    model = Capabilities("folder", 57, 4, 16, "QwenImagePipeline", 16, previews=previews)
    assert any("no previews" in warning for warning in result_of(request, output, 1.0, model).warnings) == warned


def test_a_handle_saves_images_and_videos(tmp_path: Path):
    frames = np.zeros((1, 5, 16, 16, 3), np.uint8)
    model = Capabilities("folder", 57, 4, 16, "WanPipeline", 16, tasks=("text-to-video",), frame_step=4, fps=16.0)
    for made, fps, name in ((frames, 16.0, "a.mp4"), (frames[:, 0], 0.0, "a.png")):
        output = JobOutput(made, None, 0.1, 0.1, 0.1)
        result_of(replace(order(), fps=fps), output, 1.0, model).save(str(tmp_path / name))
    assert Image.open(tmp_path / "a.png").size == (16, 16)
    with av.open(str(tmp_path / "a.mp4")) as opened:
        assert len(list(opened.decode(video=0))) == 5
