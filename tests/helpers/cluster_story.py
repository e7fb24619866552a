"""Two nodes of pretended GPUs under one service; run as a process of its own, because it has a Ray of its own.

    python -m tests.helpers.cluster_story MODEL_FOLDER

Prints one JSON object with what was seen; :mod:`tests.serving.test_cluster` judges it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycache import GenerationRequest
from raycache.app import build
from raycache.gang.placement import placement_bundles
from raycache.protocol.schemas import EngineStatus
from raycache.settings import AppSettings
from raycache.testing.planned_faults import PlannedFault, enable_planned_faults
from tests.helpers.forked_worker import forked_workers

#: A node is dead after so many missed checks, one a second; generous, for a busy machine.
_CHECKS = {"health_check_period_ms": 1000, "health_check_failure_threshold": 6, "health_check_initial_delay_ms": 0}
_OBJECTS = 128 << 20


@ray.remote(num_cpus=0, num_gpus=2)
class Tenant:
    """Somebody else, who holds two GPUs."""

    def here(self) -> bool:
        return True


def wait_for(what: Callable[[], Any], timeout_s: float = 180.0) -> Any:
    """The first true value of ``what()``."""
    end = time.monotonic() + timeout_s
    while not (value := what()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout_s:g} s")
        time.sleep(0.2)
    return value


def settings(model: str) -> AppSettings:
    """Two engines of two ranks. The ingress fits nowhere but on the head, which has no GPU."""
    return AppSettings.model_validate(
        {
            "model": {"path": model, "dtype": "float32"},
            "parallel": {
                "ranks_per_replica": 2,
                "device": "cpu",
                "rank_cpus": 0.25,
                "engine_cpus": 0.2,
                "rank_gpus": 1,
                "accelerator_type": "L20",
                "threads_per_rank": 1,
                "max_active_jobs": 1,
            },
            "cache": {"type": "none"},
            "defaults": {"size": "64x64", "num_inference_steps": 4},
            "reliability": {"watchdog_floor_s": 60.0, "health_check_period_s": 1.0, "drain_timeout_s": 5.0},
            "ingress": {"num_cpus": 3},
            "num_replicas": 2,
        }
    )


def nodes_of(statuses: list[EngineStatus]) -> list[list[str]]:
    """Per engine, the nodes its ranks sit on."""
    return [sorted({rank["node"] for rank in status.gang["ranks"]}) for status in statuses]


def main(model: str) -> dict[str, Any]:
    """What was seen."""
    enable_planned_faults()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4, "num_gpus": 0, "object_store_memory": _OBJECTS, "include_dashboard": False,
            "_system_config": _CHECKS,
        },
    )  # fmt: skip
    # Five GPUs, of which a tenant holds two, and three: a gang on each, and one GPU left over on each.
    large = cluster.add_node(
        num_cpus=2, num_gpus=5, resources={"accelerator_type:L20": 1}, object_store_memory=_OBJECTS
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    tenant = Tenant.options(scheduling_strategy=NodeAffinitySchedulingStrategy(large.node_id, soft=False)).remote()
    ray.get(tenant.here.remote())
    small = cluster.add_node(
        num_cpus=1, num_gpus=3, resources={"accelerator_type:L20": 1}, object_store_memory=_OBJECTS
    )
    app = settings(model)
    seen: dict[str, Any] = {"large": large.node_id, "small": small.node_id}
    try:
        handle = serve.run(build(app), name="flux", route_prefix=None)

        def statuses() -> list[EngineStatus]:
            return [status for status in handle.status.remote().result(timeout_s=30) if status.ready]

        def one_each() -> list[EngineStatus] | None:
            now = statuses()
            return now if len(now) == 2 else None

        both = wait_for(one_each)
        seen["nodes"] = nodes_of(both)
        pids = {status.replica: [rank["pid"] for rank in status.gang["ranks"]] for status in both}
        survivor = next(status.replica for status in both if nodes_of([status]) == [[large.node_id]])

        third = placement_group(placement_bundles(app), strategy="STRICT_PACK")
        seen["gpus_left"] = ray.available_resources().get("GPU", 0.0)
        seen["third_gang_placed"] = third.wait(3)
        remove_placement_group(third)

        slow = PlannedFault(kind="sleep", step=1, seconds=8).prompt()
        order = GenerationRequest(prompt=slow, seed=7, timeout_s=280)
        jobs = []
        while sum(status.running for status in statuses()) < 2:
            jobs.append(handle.generate.remote(order))
            time.sleep(1.5)
        cluster.remove_node(small, allow_graceful=False)
        killed = time.monotonic()
        answers = [job.result(timeout_s=300) for job in jobs]
        seen["answers"] = len(answers)
        seen["asked"] = len(jobs)
        seen["alike"] = all((answer.images[0] == answers[0].images[0]).all() for answer in answers)
        left = wait_for(lambda: (now := statuses()) and len(now) == 1 and now)
        seen["after_death"] = nodes_of(left)
        seen["untouched"] = left[0].replica == survivor and left[0].gang["restarts"] == left[0].gang["retries"] == 0
        seen["same_ranks"] = [rank["pid"] for rank in left[0].gang["ranks"]] == pids[survivor]
        time.sleep(3)
        seen["without_room"] = len(statuses())
        seen["seconds_without_room"] = time.monotonic() - killed

        ray.kill(tenant)
        again = wait_for(one_each)
        seen["after_room"] = nodes_of(again)
        handle.generate.remote(GenerationRequest(prompt="a red circle", seed=7)).result(timeout_s=120)
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()
    return seen


if __name__ == "__main__":
    with forked_workers():
        print(json.dumps(main(sys.argv[1])))
