"""Changes while the service runs, as `serve deploy` makes them: limits, defaults, number of engines, logs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from raycache.testing.inject import engines, engines_now, kill_engine, rank_pids, wait_for
from raycache.testing.planned_faults import PlannedFault
from tests.helpers.asking import ASK, URL, pixels, scraped

SECRET = "a crimson walrus"
KEY, WRONG_KEY = "sk-marmalade-4711", "sk-porcupine-0815"
AUTHORIZED = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def deploy(
    http: str, gang_settings: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str]]:
    """Deploys from a configuration, like a file of ``serve deploy``; engines of one rank, JSON logs, a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n")
    args = gang_settings(
        ranks=1,
        parallel={"engine_cpus": 0.2, "max_active_jobs": 1},
        ingress={"num_cpus": 0.1, "api_keys_file": str(keys)},
        cache={"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2},
        defaults={"size": "64x64", "num_inference_steps": 6},
        logging={"encoding": "JSON"},
        reliability={"watchdog_floor_s": 60.0},  # jobs sleep here
    ).model_dump(mode="json")

    def deploy(
        ingress: dict[str, Any] | None = None,
        changed: dict[str, dict[str, Any]] | None = None,
        tracing: dict[str, Any] | None = None,
        **engine: Any,
    ) -> str:
        application = {
            "name": "operated",
            "route_prefix": "/operated",
            "import_path": "raycache.app:build",
            "args": {**args, **{name: {**args[name], **values} for name, values in (changed or {}).items()}},
            "deployments": [
                {"name": name, **changes} for name, changes in {"Engine": engine, "Ingress": ingress}.items() if changes
            ],
        }
        config = {"applications": [application], "tracing_config": tracing or {"enabled": False}}
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
        return f"{http}/operated"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYCACHE_API_KEY", KEY)  # for `engines`
        yield deploy
    serve.delete("operated")


def draw(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(url + URL, json={**ASK, **fields}, headers=AUTHORIZED, timeout=120)


def held(url: str, what: str) -> int:
    return sum(engine[what] for engine in engines_now(url))


def test_limits_and_defaults_change_between_jobs_without_a_restart(deploy: Callable[..., str], tmp_path: Path):
    url = deploy()
    wait_for(lambda: [engine["ready"] for engine in engines(url)] == [True], 120)
    pids = rank_pids(url)
    before = draw(url)
    assert len(before.json()["report"]["steps"]) == 6
    awake = tmp_path / "awake"
    slow = PlannedFault(kind="sleep", step=1, until=str(awake), seconds=50).prompt()
    with ThreadPoolExecutor() as pool:
        under_way = pool.submit(draw, url, prompt=slow)
        wait_for(lambda: held(url, "running"), 60)
        change = {"defaults": {"num_inference_steps": 3}, "limits": {"max_steps": 10}, "cache": {"type": "none"}}
        deploy(user_config=change)
        wait_for(lambda: draw(url, num_inference_steps=11, timeout_s=1).status_code == 400, 60)
        awake.touch()
        assert draw(url).json()["report"] is None
        assert len(under_way.result().json()["report"]["steps"]) == 6, "an admitted job keeps what it was admitted with"
    assert "10" in draw(url, num_inference_steps=11).json()["error"]["message"]
    deploy(user_config={**change, "limits": {"max_steps": -5}})
    wait_for(lambda: [line for line in log_lines("replica_operated_Engine") if "limits.max_steps" in line], 60)
    assert draw(url, num_inference_steps=11).status_code == 400, "what was in force stays in force"
    assert draw(url, num_inference_steps=10).status_code == 200
    deploy(user_config={})
    wait_for(lambda: draw(url).json()["report"], 60)
    np.testing.assert_array_equal(pixels(draw(url)), pixels(before))
    assert rank_pids(url) == pids
    assert engines(url)[0]["gang"]["restarts"] == 0


def test_an_engine_that_is_stopped_finishes_its_job_and_hands_back_its_queue(
    deploy: Callable[..., str], tmp_path: Path
):
    url = deploy()
    first = wait_for(lambda: rank_pids(url), 120)
    deploy(num_replicas=2)
    wait_for(lambda: [engine["ready"] for engine in engines(url)] == [True, True], 120)
    assert set(first) < set(rank_pids(url)), "a change of `deployments` keeps the engines that are there"
    reference = pixels(draw(url))
    awake = tmp_path / "awake"
    slow = PlannedFault(kind="sleep", step=1, until=str(awake), seconds=100).prompt()
    with ThreadPoolExecutor(8) as pool:
        jobs = []
        for engine in (1, 2):  # one by one, or both may go to the same engine
            jobs.append(pool.submit(draw, url, prompt=slow))
            wait_for(lambda engine=engine: held(url, "running") == engine, 60)
        behind = [pool.submit(draw, url) for _ in range(6)]
        wait_for(lambda: held(url, "queued") == 6, 60)
        deploy(num_replicas=1)
        # While it still draws: they are not just waited for.
        wait_for(lambda: [line for line in log_lines("replica_operated_Engine") if "gave back" in line], 60)
        awake.touch()
        assert [job.result().status_code for job in jobs] == [200, 200]
        for job in behind:
            np.testing.assert_array_equal(pixels(job.result()), reference)
    wait_for(lambda: len(engines(url)) == 1, 60)


def test_the_builder_refuses_and_names_what_cannot_work(deploy: Callable[..., str]):
    """A model that is not there, and a user_config that is illegal: the engine that draws is not touched."""
    url = deploy()
    wait_for(lambda: len(engines(url)) == 1 and engines(url)[0]["ready"], 120)
    pids, before = rank_pids(url), pixels(draw(url))
    files = stacks_files()
    for changed, words in (
        ({"model": {"path": "/no/such/model"}}, "/no/such/model"),
        ({"parallel": {"rank_cpus": 1000}}, "cannot hold 1 gang"),
    ):
        deploy(changed=changed)
        wait_for(lambda words=words: words in serve.status().applications["operated"].message, 120)
        assert serve.status().applications["operated"].status == "DEPLOY_FAILED"
    np.testing.assert_array_equal(pixels(draw(url)), before)
    deploy(user_config={"limits": {"max_steps": -5}})
    refused = wait_for(lambda: engines(url)[0]["user_config_refused"], 60)
    assert "limits.max_steps" in refused
    assert rank_pids(url) == pids
    # Serve hands the illegal one to every engine that starts later, too.
    kill_engine(url)
    wait_for(lambda: rank_pids(url) not in ([], pids) and any(engine["ready"] for engine in engines(url)), 120)
    assert "limits.max_steps" in engines(url)[0]["user_config_refused"]
    np.testing.assert_array_equal(pixels(draw(url)), before)
    assert stacks_files() <= files, "a killed engine cannot clean up"
    deploy(user_config={})
    wait_for(lambda: engines(url)[0]["user_config_refused"] is None, 60)


def stacks_files() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("raycache-stacks-*"))


def log_lines(name: str) -> list[str]:
    """Lines of all log files of this Ray whose names hold ``name``."""
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    files = [path for path in folder.rglob("*") if path.is_file() and name in path.name]
    return [line for path in files for line in path.read_text(errors="replace").splitlines()]


def test_one_request_can_be_followed_and_no_prompt_is_logged(deploy: Callable[..., str]):
    url = deploy()
    wait_for(lambda: any(engine["ready"] for engine in engines(url)), 120)
    long = f"{SECRET} " * 60  # longer than the text encoder reads, which libraries like to tell
    headers = {"x-request-id": "follow-me-7", **AUTHORIZED}
    ask = {**ASK, "prompt": long}
    reply = httpx.post(url + URL, json=ask, headers=headers, timeout=60)
    assert "but this model reads only the first 64" in reply.json()["warnings"][0]
    failing = PlannedFault(kind="raise", at="decode").prompt(long)
    assert draw(url, prompt=failing).status_code == 500

    def followed(name: str) -> list[dict[str, Any]]:
        lines = [line for line in log_lines(name) if "follow-me-7" in line]
        return [json.loads(line) for line in lines if line.startswith("{")]

    for name in ("replica_operated_Ingress", "replica_operated_Engine", "worker-"):
        lines = wait_for(lambda name=name: followed(name), 20)
        assert {line["request_id"] for line in lines} == {"follow-me-7"}
    assert {line["rank"] for line in followed("worker-")} == {0}
    assert any("on purpose" in line for line in log_lines("replica_operated_Engine"))
    assert not [line for line in log_lines("") if "walrus" in line]
    # Of these ranks: others of this Ray had other models.
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    texts = [path.read_text(errors="replace") for path in folder.rglob("worker-*") if path.is_file()]
    own_lines = [line for text in texts if "follow-me-7" in text for line in text.splitlines()]
    assert own_lines
    for noise in ("torchvision", "torch_dtype", "FutureWarning", "Loading pipeline", "it/s]"):
        assert not [line for line in own_lines if noise in line]


def test_no_key_is_told_even_at_debug_level(deploy: Callable[..., str]):
    """Engines and ranks, whose level stays as it is, have never seen one."""
    url = deploy(ingress={"logging_config": {"log_level": "DEBUG", "encoding": "JSON"}})
    wait_for(lambda: serve.status().applications["operated"].status == "RUNNING", 120)
    wait_for(lambda: any(engine["ready"] for engine in engines(url)), 120)

    def ask(key: str) -> httpx.Response:
        return httpx.post(url + URL, json=ASK, headers={"authorization": f"Bearer {key}"}, timeout=60)

    wait_for(lambda: ask(KEY) and [line for line in log_lines("replica_operated_Ingress") if '"DEBUG"' in line], 60)
    assert ask(KEY).status_code == 200
    for key in (WRONG_KEY, f"{KEY} {WRONG_KEY}"):
        refused = ask(key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert key not in refused.text
    told = "\n".join([*log_lines(""), *map(str, scraped().values())])
    assert "ray_raycache_requests_total" in told
    for key in (KEY, WRONG_KEY):
        assert key not in told


def test_one_trace_goes_from_the_ingress_to_every_rank(deploy: Callable[..., str]):
    """Through Serve's own tracing, which is off everywhere else here. Replicas take it up when they start."""
    url = deploy()
    wait_for(lambda: any(engine["ready"] for engine in engines(url)), 120)
    draw(url)
    assert not spans(), "off by default"
    everything = {"enabled": True, "sampling_ratio": 1.0}
    old = rank_pids(url)
    actor = {"ray_actor_options": {"num_cpus": 0.15}}  # another one makes Serve start replicas anew
    deploy(tracing=everything, ingress=actor, **actor)
    wait_for(lambda: serve.status().applications["operated"].status == "RUNNING", 120)
    wait_for(lambda: (pids := rank_pids(url)) and not set(pids) & set(old), 120)
    traced = wait_for(lambda: draw(url).status_code == 200 and whole_trace(), 60)
    assert {"encode", "denoise", "decode"} <= set(traced)
    for child, parent in {
        "decode": "rank 0",
        "rank 0": "replica_handle_request Engine generate",
        "replica_handle_request Engine generate": "route_to_replica Engine generate",
        "route_to_replica Engine generate": "fastapi.endpoint",
    }.items():
        assert traced[child]["parent_id"] == traced[parent]["context"]["span_id"], child
    deploy()


def spans() -> list[dict[str, Any]]:
    """What Serve's default exporter wrote: JSON objects one after the other."""
    folder, found = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve" / "spans", []
    for file in folder.glob("*"):
        text, decoder = file.read_text().lstrip(), json.JSONDecoder()
        while text:
            one, end = decoder.raw_decode(text)
            found.append(one)
            text = text[end:].lstrip()
    return found


def whole_trace() -> dict[str, dict[str, Any]]:
    """The spans of a trace that reached a rank, by name."""
    found = spans()
    for rank in [one for one in found if one["name"] == "rank 0" and one["parent_id"]]:
        mates = {one["name"]: one for one in found if one["context"]["trace_id"] == rank["context"]["trace_id"]}
        if any(name.startswith("POST ") for name in mates):  # the ingress, as Serve's FastAPI spans call it
            return mates
    return {}
