"""Images that ranks decode by tiles together are those of one rank that decodes by tiles, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from raycache.models.registry import family_of
from raycache.protocol.job import Job
from raycache.protocol.tick import Tick, TickReport
from raycache.testing.tiny_models import TINY_FAMILIES
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from raycache.worker.observer import Observer
from tests.helpers.ranks import run_ranks
from tests.helpers.ticks import draw, whole
from tests.helpers.tiny_models import load_tiny, small_tiles, tiny_folder, tiny_job

TASKS = {"flux": "text-to-image", "wan": "text-to-video"}


class FailsToDecode(Observer):
    def entered(self, job: Job, phase: str) -> None:
        if (job.id, phase) == ("bad", "decode"):
            raise torch.OutOfMemoryError("no room for a tile")


def _runner(pipe: Any, name: str, rank: int, world: int, over: float, **more: Any) -> JobRunner:
    """Of a pipeline that is not split, so that all ranks have the same latents as one alone."""
    family, text = family_of(TINY_FAMILIES[name].pipeline), 32
    context = RankContext(pipe, family, rank, torch.device("cpu"), text, world, tiled_over=over, **more)
    return JobRunner(context, dist.group.WORLD if world > 1 else None)


def _jobs(name: str, *ids: str) -> dict[Job, int]:
    task = TASKS[name]
    jobs = {
        "one": tiny_job(name, task, "one", (7,), size="112x160"),
        "three": tiny_job(name, task, "three", (7, 8, 9), size="160x112"),
        "bad": tiny_job(name, task, "bad", (5,), size="112x160"),
        "small": tiny_job(name, task, "small", (6,), size="64x64"),
    }
    return {jobs[id]: number for number, id in enumerate(ids)}


def _ranks(rank: int, world: int, folders: dict[str, Path]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for name, folder in folders.items():
        pipe = load_tiny(folder)
        small_tiles(pipe.vae)
        jobs = _jobs(name, "one", "three", "small")
        over = 64 * 64 * next(iter(jobs)).inputs.num_frames  # the small one is decoded whole
        counted = [0]
        hook = pipe.vae.decoder.register_forward_hook(
            lambda *_, counted=counted: counted.__setitem__(0, counted[0] + 1)
        )
        answer[name] = draw(_runner(pipe, name, rank, world, over), jobs)
        answer[f"{name} calls"] = counted[0]
        hook.remove()
        if rank == 0:
            answer[f"{name} alone"] = draw(_runner(pipe, name, 0, 1, over), jobs)
            answer[f"{name} whole"] = draw(_runner(pipe, name, 0, 1, float("inf")), jobs)
    observer = FailsToDecode() if rank else Observer()
    beside = _runner(pipe, name, rank, world, over, overlaps=True, observer=observer)
    answer["beside"] = [draw(beside, _jobs(name, "one", "bad", "small")), beside.tick(Tick(90, 89))]
    return answer


def test_two_ranks_share_tiles_of_images_and_videos():
    ranks = run_ranks(2, _ranks, {name: tiny_folder(name) for name in TASKS}, timeout=300)
    first = ranks[0]
    for name in TASKS:
        drawn = whole([told[name] for told in ranks])
        expected, undivided = first[f"{name} alone"].outputs, first[f"{name} whole"].outputs
        assert sorted(drawn) == ["one", "small", "three"]
        for id, output in drawn.items():
            np.testing.assert_array_equal(output.images, expected[id].images)
            assert output.images.std() > 5
            assert np.array_equal(undivided[id].images, expected[id].images) == (id == "small"), "or it has no tiles"
        assert sorted(len(told[name].decoded["three"]) for told in ranks) == [1, 2]
        assert abs(first[f"{name} calls"] - ranks[1][f"{name} calls"]) < 0.2 * first[f"{name} calls"]
    for told in ranks:
        drawn, last = told["beside"]
        assert isinstance(last, TickReport)
        (failure,) = [*drawn.failures, *last.failures]
        assert (failure.jobs, failure.phase, failure.kind) == (("bad",), "decode", "error")
    messages = [[*told["beside"][0].failures, *told["beside"][1].failures][0] for told in ranks]
    assert [(failure.type, failure.message) for failure in messages] == [
        ("OthersFailed", "rank 1: OutOfMemoryError: no room for a tile"),
        ("OutOfMemoryError", "no room for a tile"),
    ]
    rows = {id: images for told in ranks for part in told["beside"] for id, images in part.decoded.items() if images}
    for id in ("one", "small"):
        alone = first["wan alone"].outputs[id].images[0]
        assert np.abs(rows[id][0].astype(int) - alone).max() <= 1, "its calls were shared with others"
