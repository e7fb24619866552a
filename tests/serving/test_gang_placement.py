"""Where ranks sit: one GPU each, from bundles alone; two gangs on one node draw at the same time."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import yaml
from ray.util.placement_group import placement_group, remove_placement_group

from raycache.gang.gang import Gang
from raycache.gang.placement import placement_bundles
from raycache.protocol.job_errors import GangStartError
from raycache.settings import AppSettings
from tests.helpers.rank_processes import rank_processes
from tests.serving.conftest import job, wait_until

PRODUCTION = Path(__file__).parents[2] / "serve_configs" / "flux_dbcache.yaml"


def test_bundles_of_the_production_config():
    settings = AppSettings.model_validate(yaml.safe_load(PRODUCTION.read_text())["applications"][0]["args"])
    rank = {"CPU": 1.0, "GPU": 1.0, "accelerator_type:L20": 0.001}
    assert placement_bundles(settings) == [{"CPU": 1.0}, rank, rank, rank, rank]


def test_two_gangs_on_one_node_one_gpu_per_rank(local_ray, gang_settings):
    """Four pretended L20s, two gangs of two ranks: own GPUs, own rendezvous, the same image at the same time."""
    pretended = {"rank_gpus": 1, "accelerator_type": "L20", "engine_cpus": 0.1}
    settings = gang_settings(parallel=pretended)
    groups = [placement_group(placement_bundles(settings), strategy="STRICT_PACK") for _ in range(2)]
    ray.get([group.ready() for group in groups], timeout=30)
    gangs = [Gang(settings, group, name=f"twin-{k}") for k, group in enumerate(groups)]
    try:
        with ThreadPoolExecutor() as pool:  # both rendezvous at once
            list(pool.map(Gang.start, gangs))
        handles = [gang.submit(job(steps=200)) for gang in gangs]
        first, second = (handle.future.result(120).images for handle in handles)
        np.testing.assert_array_equal(first, second)
        gpus = [rank["gpus"] for gang in gangs for rank in gang.status().ranks]
        assert sorted(gpus) == [["0"], ["1"], ["2"], ["3"]]
    finally:
        for gang, group in zip(gangs, groups, strict=True):
            gang.shutdown()
            remove_placement_group(group)


def test_a_model_that_cannot_be_had_is_one_clear_error(local_ray, gang_settings, tmp_path):
    """The other ways in which there may be none: `tests/unit/models/test_loading.py`."""
    gang = Gang(gang_settings(ranks=1, model={"path": str(tmp_path)}), name="no-model")
    with pytest.raises(GangStartError) as caught:
        gang.start()
    for word in (str(tmp_path), "model_index.json"):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 800
    gang.shutdown()


def test_a_spare_takes_over_on_the_gpu_of_its_rank_and_one_that_is_gone_is_missed_by_nobody(local_ray, gang_settings):
    pretended = {"rank_gpus": 1, "accelerator_type": "L20", "engine_cpus": 0.1, "spare_processes": True}
    settings = gang_settings(ranks=1, parallel=pretended, reliability={"max_restarts": 9})
    group = placement_group(placement_bundles(settings), strategy="STRICT_PACK")
    ray.get(group.ready(), timeout=30)
    others, gang = rank_processes(), Gang(settings, group, name="spared")

    def dies(pid: int) -> None:
        """And a job is drawn as before."""
        os.kill(pid, signal.SIGKILL)
        np.testing.assert_array_equal(gang.submit(job()).future.result(120).images, expected)

    def own() -> int:
        return int(gang.status().ranks[0]["pid"])

    def spare() -> int:
        """Once it is there."""
        wait_until(lambda: len(rank_processes() - others - {own()}) == 1, 90)
        (pid,) = rank_processes() - others - {own()}
        return pid

    try:
        gang.start()
        expected = gang.submit(job()).future.result(60).images
        gpus, waiting = gang.status().ranks[0]["gpus"], spare()
        dies(own())
        assert own() == waiting
        assert gang.status().ranks[0]["gpus"] == gpus
        last = spare()
        os.kill(last, signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(last))
        dies(own())
        assert own() not in (waiting, last)
        assert gang.status().ranks[0]["gpus"] == gpus
        spare()
    finally:
        gang.shutdown()
        remove_placement_group(group)
    wait_until(lambda: rank_processes() == others, 60)
