"""Ranks without Ray: four draw what one draws, and stop together at any step without leaving a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from cache_core import DBCacheOptions
from raycache.demo.noise import build_noise_model
from raycache.protocol.heartbeat import Failure
from raycache.protocol.job import Job, JobOutput
from raycache.settings import AppSettings
from raycache.worker.rank import Rank
from tests.helpers.ranks import run_ranks

STEPS = 10
CACHE = DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_noise_model(tmp_path_factory.mktemp("models") / "noise", layers=1, single_layers=2)


class StoppingRank(Rank):
    """Wishes its job to end once ``stop_after`` steps are done."""

    stop_after: int | None = None

    def _step_done(self, job: Job, report: Any, step: int, state: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == self.stop_after:
            self.abort(job.id)
        return super()._step_done(job, report, step, state)


def _rank(folder: Path, rank: int, world_size: int, **model: Any) -> StoppingRank:
    settings = AppSettings(
        model={"path": str(folder), "dtype": "float32", **model},
        parallel={"ranks_per_replica": world_size, "device": "cpu", "threads_per_rank": 1, "collective_timeout_s": 77},
    )
    made = StoppingRank(settings, rank, f"{folder}-{world_size}-{rank}.stacks")
    made.load(str(folder), "noise")
    return made


def _job(name: str) -> Job:
    return Job(name, "a red circle", 64, 64, (7,), STEPS, 3.5, CACHE)


def _latents(rank: Rank, width: int, images: int) -> torch.Tensor:
    return rank._pipe(
        "a red circle",
        width=width,
        height=64,
        num_inference_steps=3,
        num_images_per_prompt=images,
        generator=[torch.Generator().manual_seed(seed) for seed in range(images)],
        max_sequence_length=64,
        output_type="latent",
    ).images


def _draw_and_stop(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    alone, together = _rank(folder, 0, 1), _rank(folder, rank, world_size)
    latents = [[_latents(who, *shape) for who in (alone, together)] for shape in ((64, 1), (96, 2))]
    fresh = together.generate(_job("fresh"))
    stopped, after = [], []
    for step in range(STEPS + 1):
        # Rank 0 alone is told; all others must learn of it from the flag that is summed with the decisions.
        together.stop_after = step if rank == 0 else None
        if together.stop_after == 0:
            together.abort(f"stop-{step}")
        stopped.append(together.generate(_job(f"stop-{step}")))
        together.stop_after = None
        after.append(together.generate(_job(f"after-{step}")))
    together.settle()
    timeout_s = together._group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    return {"latents": latents, "fresh": fresh, "stopped": stopped, "after": after, "timeout_s": timeout_s}


@pytest.mark.parametrize("world_size", [2, 4])
def test_four_draw_what_one_draws_and_stop_together(model: Path, world_size: int):
    answers = run_ranks(world_size, _draw_and_stop, model, timeout=240)
    for answer in answers:
        for alone, together in answer["latents"]:
            assert alone.std() > 0.1, "latents that are all alike would be equal for the wrong reason"
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)

    for step in range(STEPS):
        failures: list[Failure] = [answer["stopped"][step] for answer in answers]
        assert {(f.kind, f.place, f.message) for f in failures} == {
            ("aborted", ("aborted", "denoise", step, "JobAborted"), f"job aborted at step {step} of branch 'cond'")
        }
    # After the last step only rank 0 still has something to do, and does not do it.
    first, *others = (answer["stopped"][STEPS] for answer in answers)
    assert (first.kind, first.phase) == ("aborted", "decode")
    assert all(not isinstance(other, Failure) for other in others)

    assert [answer["timeout_s"] for answer in answers] == [77] * world_size, "the decisions' group, and no other's"
    fresh: JobOutput = answers[0]["fresh"][0]
    assert fresh.report["totals"]["cached_steps"][0] > 0
    for output, _ in answers[0]["after"]:
        np.testing.assert_array_equal(output.images, fresh.images)
        assert output.report == fresh.report


def _draw_compiled(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    expected = _rank(folder, rank, world_size).generate(_job("plain"))
    traced: list[str] = []
    ran = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        # Inductor would compile for a minute. What may go wrong among ranks is tracing, and the collectives in it.
        # Down to ATen like inductor: torch functions would meet ParaAttention's function mode a second time.
        traced.append(graph.print_readable(print_output=False))
        lowered = aot_eager(graph, inputs)

        def call(*args: Any) -> Any:
            nonlocal ran
            ran += 1
            return lowered(*args)

        return call

    torch.compile = functools.partial(torch.compile, backend=backend)
    drawn = _rank(folder, rank, world_size, compile=True).generate(_job("compiled"))
    return {"plain": expected, "compiled": drawn, "traced": traced, "ran": ran}


def test_compiled_blocks_draw_the_same_on_two_ranks(model: Path):
    answers = run_ranks(2, _draw_compiled, model, timeout=240)
    (plain, _), (compiled, _) = answers[0]["plain"], answers[0]["compiled"]
    np.testing.assert_array_equal(compiled.images, plain.images)
    assert compiled.report == plain.report
    assert plain.report["totals"]["cached_steps"][0] > 0
    for answer in answers:
        assert all("all_to_all" in graph for graph in answer["traced"])
        assert 0 < len(answer["traced"]) < answer["ran"], "one graph serves all steps"
