"""Small models of every family, on two ranks each: every task, over HTTP.

Asked as OpenAI's client asks; what is drawn, and what the cache decides, is what diffusers draws in one process.
Several models stand in one service, and a few services one after the other: ranks that wait need a processor, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openai
import pytest
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from cache_core import FBCacheOptions
from raycache.models.registry import FAMILIES, family_of
from raycache.protocol.video_files import write_video
from raycache.settings import AppSettings
from raycache.testing.inject import engines, wait_for
from raycache.testing.tiny_models import TINY_FAMILIES
from tests.helpers.asking_tasks import FPS, NONE, Answer, asked, edited, frames, mask, pixels, png
from tests.helpers.plain_diffusers import GUIDANCE, PROMPT, SEED, plain, scene
from tests.helpers.tiny_models import tiny_folder

#: The small one for each model that a file in `serve_configs` names.
CONFIGURED = {
    "black-forest-labs/FLUX.1-dev": "flux",
    "black-forest-labs/FLUX.1-schnell": "flux-schnell",
    "black-forest-labs/FLUX.1-Kontext-dev": "flux-kontext",
    "black-forest-labs/FLUX.1-Fill-dev": "flux-fill",
    "black-forest-labs/FLUX.2-klein-4B": "flux2-klein",
    "black-forest-labs/FLUX.2-dev": "flux2",
    "Tongyi-MAI/Z-Image-Turbo": "z-image-3-heads",  # two ranks do not divide them, nor four the 30 of the real one
    "stabilityai/stable-diffusion-3.5-large": "sd3",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": "wan-ti2v",
    "Qwen/Qwen-Image": "qwen-image",
    "Qwen/Qwen-Image-Edit-2509": "qwen-image-edit-plus",
    "Qwen/Qwen-Image-2.1": "qwen-image-2.1",
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": "hunyuan-video-1.5",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "wan-2.2",
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": "wan-i2v",
    "Lightricks/LTX-2": "ltx2",
    "hunyuanvideo-community/HunyuanImage-2.1-Diffusers": "hunyuan-image",
    "demo": "flux",
}
#: Models of one service each, by its name; `flux` is the service that the whole run shares.
SERVICES = {
    "flux1": ("flux", "flux-schnell", "flux-kontext", "flux-fill"),
    "flux2": ("flux2", "flux2-klein", "hunyuan-image"),
    "images": ("z-image-3-heads", "sd3", "qwen-image"),
    "edits": ("qwen-image-edit", "qwen-image-edit-plus", "flux3", "flux3-distilled"),
    "videos": ("wan-ti2v", "wan-2.2", "wan-i2v", "ltx2"),
    "others": ("chroma", "qwen-image-2.1", "sana"),
    "films": ("ltx", "hunyuan-video-1.5", "cogvideox"),
}
#: Ranks of each; two of the others. Sana's linear attention is not split.
RANKS = {"flux": 4, "sana": 1}
CASES = [
    (service, name, task)
    for service, models in SERVICES.items()
    for name in models
    for task in family_of(TINY_FAMILIES[name].pipeline).tasks
]
STEPS = 3
CACHE = FBCacheOptions(warmup_steps=1, residual_diff_threshold=5.0, max_cached_steps=1)


class Served(NamedTuple):
    """A service with some of the models.

    Attributes:
        answers: to each task of each model, without and with a cache.
    """

    url: str
    models: tuple[str, ...]
    client: openai.OpenAI
    answers: dict[tuple[str, str, bool], Future[Answer]]


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest,
    http: str,
    gang_settings: Callable[..., AppSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    models, url = SERVICES[request.param], f"{http}/{request.param}"
    args = gang_settings(
        # One job at a time: calls that jobs share are rounded otherwise.
        parallel={"engine_cpus": 0.1, "startup_timeout_s": 300.0, "max_active_jobs": 1},
        ingress={"num_cpus": 0.1},
        cache=CACHE.model_dump(),
        defaults={"size": "64x64", "num_inference_steps": STEPS, "guidance_scale": GUIDANCE},
        reliability={"watchdog_floor_s": 60.0, "max_queued_seconds": 1e6, "request_timeout_s": 1e6},
        **(
            {"store": {"folder": str(tmp_path_factory.mktemp("store"))}}
            if any(family_of(TINY_FAMILIES[name].pipeline).frame_step for name in models)
            else {}
        ),
    ).model_dump(mode="json", exclude_unset=True)
    del args["model"]
    args["models"] = [entry(name, args["parallel"]) for name in models]
    app = {
        "name": request.param,
        "route_prefix": f"/{request.param}",
        "import_path": "raycache.app:build",
        "args": args,
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [app]}))

    def ready() -> bool:
        told = serve.status().applications[request.param]
        assert told.status != "DEPLOY_FAILED", told.message
        return {engine["model_name"] for engine in engines(url) if engine["ready"]} == set(models)

    wait_for(ready, 500)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=400)
    with ThreadPoolExecutor(2) as pool:  # one or two are drawn while this process draws the same
        answers = {
            (name, task, cached): pool.submit(asked, client, name, task, CACHE.model_dump() if cached else NONE)
            for service, name, task in CASES
            if service == request.param
            for cached in (False, True)
        }
        yield Served(url, models, client, answers)
    serve.delete(request.param)


def entry(name: str, parallel: dict[str, Any]) -> dict[str, Any]:
    """A model in the service's list."""
    length = TINY_FAMILIES[name].ask.get("max_sequence_length")
    model = {
        "name": name,
        "path": str(tiny_folder(name)),
        "dtype": "float32",
        **({"max_sequence_length": length} if length else {}),
    }
    return {"model": model, "warmup": [], "parallel": parallel | {"ranks_per_replica": RANKS.get(name, 2)}}


def test_every_configured_model_has_a_small_one():
    named = set()
    for file in (Path(__file__).parents[2] / "serve_configs").glob("*.yaml"):
        args = yaml.safe_load(file.read_text())["applications"][0]["args"]
        named |= {one["model"]["path"] for one in args.get("models", [args])}
    assert named == set(CONFIGURED)
    assert set(CONFIGURED.values()) <= {name for _, name, _ in CASES}


def test_every_family_is_served():
    assert {TINY_FAMILIES[name].pipeline for _, name, _ in CASES} == set(FAMILIES)


def blocks(pixels: np.ndarray) -> np.ndarray:
    """Means over 8x8 pixels of ``[frames, height, width, 3]``."""
    count, height, width, _ = pixels.shape
    return pixels.reshape(count, height // 8, 8, width // 8, 8, 3).mean((2, 4))


@pytest.mark.parametrize("served", SERVICES, indirect=True, scope="module")
def test_two_ranks_draw_and_decide_what_diffusers_does(served: Served, tmp_path: Path):
    for (name, task, cached), answered in served.answers.items():
        case = f"{name}, {task}, {'cached' if cached else 'uncached'}"
        expected, answer = plain(name, task, STEPS, CACHE if cached else None), answered.result(400)
        assert answer.pixels.shape == expected.pixels.shape, case
        assert expected.pixels.std() > 5, case
        gaps = np.abs(answer.pixels.astype(int) - expected.pixels)
        if task.endswith("video"):
            write_video(tmp_path / "expected.mp4", expected.pixels, FPS)
            # A pixel that is rounded otherwise is encoded otherwise, and its neighbours with it: up to 2.1 in the mean,
            # differently in each run. Means of blocks are 0.0 to 0.3 apart then, and 1.1 or more with one step more.
            encoded = frames(str(tmp_path / "expected.mp4"))
            assert np.abs(blocks(answer.pixels) - blocks(encoded)).mean() < 0.9, case
        else:
            assert gaps.max() <= 1, case
        assert _decisions(answer.report) == expected.decisions, case
        if cached:
            assert {row[0] for _, _, rows in expected.decisions for row in rows} == {False, True}, case
            collectives = answer.report["totals"]["collectives"]
            assert (collectives > 0) == (RANKS.get(name, 2) > 1), f"{case}: the ranks decided together"


def _decisions(report: dict[str, Any] | None) -> list[Any]:
    """As those of :class:`tests.helpers.plain_diffusers.Plain`."""
    steps = report["steps"] if report else []
    return [[s["step"], s["branch"], [[row["cached"], row["reason"]] for row in s["images"]]] for s in steps]


@pytest.mark.parametrize("served", SERVICES, indirect=True, scope="module")
def test_models_say_what_they_can_do(served: Served):
    told = {model.id: model.model_dump() for model in served.client.models.list()}
    assert set(told) == set(served.models)
    for name in served.models:
        tasks = set(family_of(TINY_FAMILIES[name].pipeline).tasks)
        assert set(told[name]["capabilities"]["tasks"]) == tasks, name
    ranks = {engine["model_name"]: len(engine["gang"]["ranks"]) for engine in engines(served.url)}
    assert ranks == {name: RANKS.get(name, 2) for name in served.models}


@pytest.mark.parametrize("served", ["flux1"], indirect=True, scope="module")
def test_a_streamed_edit_ends_in_the_same_image(served: Served):
    for name, task, more in (("flux-kontext", "edit", {}), ("flux-fill", "inpaint", {"mask": mask()})):
        extra = {"seed": SEED, "cache": NONE}
        events = list(
            served.client.images.edit(
                model=name, image=png(scene()), prompt=PROMPT, stream=True, extra_body=extra, **more
            )
        )
        assert events[-1].type == "image_edit.completed"
        np.testing.assert_array_equal(pixels(events[-1].b64_json), served.answers[name, task, False].result(400).pixels)


@pytest.mark.parametrize("served", ["flux2", "edits", "others"], indirect=True, scope="module")
def test_images_of_unlike_sizes_are_edited_together(served: Served):
    widths = (64, 96)
    several = [name for name in served.models if family_of(TINY_FAMILIES[name].pipeline).max_inputs > 1]
    assert several
    for name in several:
        drawn = edited(served.client, name, widths).astype(int)
        assert np.abs(drawn - plain(name, "edit", STEPS, widths=widths).pixels).max() <= 1, name
        assert np.abs(drawn - served.answers[name, "edit", False].result(400).pixels).max() > 1, name


@pytest.mark.parametrize("served", ["images"], indirect=True, scope="module")
def test_what_is_asked_besides_is_not_lost(served: Served):
    drawn = served.answers["qwen-image", "text-to-image", False].result(400).pixels
    guided = {"negative_prompt": "grey", "true_cfg_scale": 4.0, "seed": SEED, "cache": NONE}
    for change in ({"seed": 8}, {"negative_prompt": "a blue square"}, {"true_cfg_scale": 2.0}):
        other = served.client.images.generate(model="qwen-image", prompt=PROMPT, extra_body=guided | change)
        assert not np.array_equal(pixels(other.data[0].b64_json), drawn), change


@pytest.mark.parametrize("served", ["images"], indirect=True, scope="module")
def test_a_forecast_is_asked_for_like_any_other_cache(served: Served):
    cache = {"type": "ForecastCache", "warmup_steps": 3, "residual_diff_threshold": 5.0, "max_cached_steps": 2}
    extra = {"seed": SEED, "num_inference_steps": 8, "cache": cache}
    told = served.client.images.generate(model="sd3", prompt=PROMPT, extra_body=extra).model_dump()["report"]
    rows = [row for step in told["steps"] for row in step["images"] if row["cached"]]
    assert rows
    assert all(sum(row["weights"]) == pytest.approx(1, abs=1e-3) for row in rows)
    refused = {**extra, "cache": {"type": "ForecastCache", "forecast_nodes": 9}}
    with pytest.raises(openai.BadRequestError, match="forecast_nodes"):
        served.client.images.generate(model="sd3", prompt=PROMPT, extra_body=refused)


@pytest.mark.parametrize("served", ["videos", "flux1"], indirect=True, scope="module")
def test_a_task_that_a_model_has_not_is_refused(served: Served):
    name = "wan-2.2" if "wan-2.2" in served.models else "flux-fill"
    with pytest.raises(openai.BadRequestError, match=r"wan|text-to-video|inpaint") as refused:
        served.client.images.generate(model=name, prompt=PROMPT)
    assert refused.value.code == "unsupported_task"
