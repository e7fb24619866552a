"""Videos by OpenAI's own client."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from raycache.protocol.errors import RequestError
from tests.helpers.stored_app import PIXELS, PNG, URL, Application, frames_of


@pytest.fixture
def client(app: Application) -> openai.OpenAI:
    """The client, which sends no header of its own that its transport has."""
    return openai.OpenAI(base_url="http://testserver/v1", api_key="blue-key", max_retries=0, http_client=app.http)


@pytest.mark.filterwarnings("ignore:The Sora API")
class TestOpenAisClient:
    """It sends forms, whatever it is told."""

    def test_from_create_to_delete(self, client: openai.OpenAI, app: Application, tmp_path: Path):
        video = client.videos.create_and_poll(
            prompt="a circle",
            model="wan",
            seconds="4",
            size="64x48",
            poll_interval_ms=20,
            extra_body={"seed": 7, "num_inference_steps": 3, "cache": {"type": "FBCache", "warmup_steps": 2}},
        )
        assert (video.status, video.progress, video.size, video.error) == ("completed", 100, "64x48", None)
        assert (video.model_extra["num_frames"], float(video.seconds)) == (65, 65 / 16)
        (asked,) = app.asker.asked
        assert (asked.seed, asked.num_inference_steps, asked.cache.type) == (7, 3, "FBCache")
        assert asked.cache.warmup_steps == 2
        client.videos.download_content(video.id).write_to_file(tmp_path / "video.mp4")
        assert len(frames_of((tmp_path / "video.mp4").read_bytes())) == 65
        thumbnail = client.videos.download_content(video.id, variant="thumbnail").read()
        assert Image.open(io.BytesIO(thumbnail)).format == "WEBP"
        assert client.videos.retrieve(video.id).status == "completed"
        assert client.videos.delete(video.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(video.id)

    def test_lists_page_by_page(self, client: openai.OpenAI, app: Application):
        app.hold()
        ids = [app.made(seed=seed)["id"] for seed in range(5)]
        assert [video.id for video in client.videos.list(limit=2)] == ids[::-1]
        assert [video.id for video in client.videos.list(limit=3, order="asc", after=ids[0])] == ids[1:]

    def test_a_failure_is_told_not_raised(self, client: openai.OpenAI, app: Application):
        app.asker.answers = [RequestError(500, "drawing failed", None, "job_failed")]
        video = client.videos.create_and_poll(prompt="a", size="64x48", poll_interval_ms=20)
        assert (video.status, video.error.code, video.error.message) == ("failed", "job_failed", "drawing failed")

    def test_what_is_wrong_is_raised(self, client: openai.OpenAI):
        with pytest.raises(openai.BadRequestError, match="seconds"):
            client.videos.create(prompt="a", seconds="12")
        with pytest.raises(openai.NotFoundError):
            client.videos.create(prompt="a", model="sora-2")

    @pytest.mark.parametrize(
        "given",
        [
            {"input_reference": ("first.png", PNG, "image/png")},
            {"input_reference": PNG},
            # Its types allow an object, and its code does not.
            {"extra_body": {"input_reference": {"image_url": URL}}},
        ],
        ids=["file", "bytes", "url"],
    )
    def test_an_image_to_begin_with(self, client: openai.OpenAI, app: Application, given: dict[str, Any]):
        video = client.videos.create_and_poll(prompt="a", size="64x48", poll_interval_ms=20, **given)
        assert video.status == "completed"
        (asked,) = app.asker.asked
        assert asked.inputs().task == "image-to-video"
        np.testing.assert_array_equal(asked.inputs().images[0], PIXELS)
