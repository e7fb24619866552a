"""Small models of many families in one service: every task, asked over HTTP as OpenAI's client asks it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai
import pytest
from PIL import Image
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from raycache.settings import AppSettings
from raycache.testing.inject import engines, wait_for
from tests.helpers.tiny_models import tiny_folder

#: One engine each, on one rank; what many ranks draw is in tests/distributed.
MODELS = ("flux-kontext", "flux-fill", "qwen-image", "wan-2.2", "wan-i2v")
CACHE = {"type": "FBCache", "warmup_steps": 1, "residual_diff_threshold": 5.0, "max_cached_steps": 1}


@pytest.fixture(scope="module")
def url(
    http: str, gang_settings: Callable[..., AppSettings], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    args = gang_settings(
        ranks=1,
        parallel={"engine_cpus": 0.1, "startup_timeout_s": 300.0},
        ingress={"num_cpus": 0.1},
        cache=CACHE,
        defaults={"size": "64x64", "num_inference_steps": 3, "guidance_scale": 4.0},
        reliability={"watchdog_floor_s": 60.0},
    ).model_dump(mode="json", exclude_unset=True)
    del args["model"]
    args["models"] = [
        {"model": {"name": name, "path": str(tiny_folder(name)), "dtype": "float32"}, "warmup": []} for name in MODELS
    ]
    args["store"] = {"folder": str(tmp_path_factory.mktemp("store"))}
    application = {"name": "tasks", "route_prefix": "/tasks", "import_path": "raycache.app:build", "args": args}
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
    url = f"{http}/tasks"
    wait_for(lambda: {engine["model_name"] for engine in engines(url) if engine["ready"]} == set(MODELS), 400)
    yield url
    serve.delete("tasks")


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def png(mode: str = "RGB") -> tuple[str, bytes, str]:
    rows, columns = np.mgrid[:64, :64].astype(np.uint8)
    picture = np.stack([4 * rows, 4 * columns, 255 - 2 * rows - 2 * columns], axis=-1)
    if mode == "RGBA":
        picture = np.dstack([picture, np.where(columns < 32, 255, 0).astype(np.uint8)])
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return "picture.png", buffer.getvalue(), "image/png"


def pixels(answer: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))))


def test_models_say_what_they_can_do(client: openai.OpenAI):
    told = {model.id: model.model_dump() for model in client.models.list()}
    assert set(told) == set(MODELS)
    assert "edit" in str(told["flux-kontext"])
    assert "text-to-video" in str(client.models.retrieve("wan-2.2").model_dump())


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("qwen-image", {"negative_prompt": "grey", "true_cfg_scale": 3.0}),
        ("flux-kontext", {}),
    ],
)
def test_text_to_image(client: openai.OpenAI, model: str, more: dict[str, Any]):
    def ask(**other: Any) -> Any:
        body = {"seed": 7, "cache": CACHE, **more, **other}
        return client.images.generate(model=model, prompt="a red circle", extra_body=body)

    first, again, other = ask(), ask(), ask(seed=8)
    assert pixels(first).shape == (64, 64, 3)
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(other))
    assert sum(first.model_dump()["report"]["totals"]["cached_steps"]) >= 1
    if more:
        unguided = ask(negative_prompt="a blue square")
        assert not np.array_equal(pixels(first), pixels(unguided))


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("flux-kontext", {}),
        ("qwen-image", {"strength": 0.7}),
        ("flux-fill", {"mask": True}),
    ],
)
def test_edits(client: openai.OpenAI, model: str, more: dict[str, Any]):
    extra = {"seed": "7"} | {name: str(value) for name, value in more.items() if name != "mask"}
    mask = {"mask": png("RGBA")} if "mask" in more else {}
    image = client.images.edit(model=model, image=png(), prompt="a red circle", extra_body=extra, **mask)
    assert pixels(image).shape == (64, 64, 3)
    events = list(
        client.images.edit(model=model, image=png(), prompt="a red circle", stream=True, extra_body=extra, **mask)
    )
    assert events[-1].type == "image_edit.completed"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(events[-1].b64_json)))), pixels(image))


def test_a_task_that_a_model_has_not_is_refused(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match=r"wan|text-to-video") as refused:
        client.images.generate(model="wan-2.2", prompt="a red circle")
    assert refused.value.code == "unsupported_task"
    with pytest.raises(openai.BadRequestError):
        client.images.generate(model="flux-fill", prompt="a red circle")


@pytest.mark.parametrize("model", ["wan-2.2", "wan-i2v"])
def test_videos(client: openai.OpenAI, model: str, tmp_path: Path):
    reference: dict[str, Any] = {"input_reference": png()} if model == "wan-i2v" else {}
    video = client.videos.create_and_poll(
        model=model,
        prompt="a red circle",
        extra_body={"num_frames": 5, "size": "64x64", "seed": 7},
        poll_interval_ms=200,
        **reference,
    )
    assert video.status == "completed", video
    file = tmp_path / "video.mp4"
    file.write_bytes(client.videos.download_content(video.id).read())
    with av.open(str(file)) as opened:
        frames = [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]
    assert [frame.shape for frame in frames] == [(64, 64, 3)] * 5
    assert client.videos.delete(video.id).deleted
