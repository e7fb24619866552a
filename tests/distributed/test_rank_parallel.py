"""Ranks without Ray: four draw what one draws, many jobs at once, and drop jobs at any step without leaving a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from cache_core import DBCacheOptions, NoCacheOptions
from raycache.demo.noise import build_noise_model
from raycache.models.compiling import BlockCompiler
from raycache.protocol.job import Job, JobOutput
from raycache.settings import AppSettings
from raycache.worker import rank as rank_module
from raycache.worker.rank import Rank
from tests.helpers.jobs import make_job
from tests.helpers.ranks import run_ranks
from tests.helpers.ticks import draw, whole

STEPS = 10
CACHE = DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_noise_model(tmp_path_factory.mktemp("models") / "noise", layers=1, single_layers=2)


def _rank(folder: Path, rank: int, world_size: int, **model: Any) -> Rank:
    settings = AppSettings(
        model={"path": str(folder), "dtype": "float32", **model},
        parallel={"ranks_per_replica": world_size, "device": "cpu", "threads_per_rank": 1, "collective_timeout_s": 77},
    )
    made = Rank(settings, rank, f"{folder}-{world_size}-{rank}.stacks")
    made.load(str(folder), "noise")
    return made


def _job(name: str, steps: int = STEPS, seed: int = 7, cache: Any = CACHE, **fields: Any) -> Job:
    return make_job(name, steps=steps, cache=cache, **{"seeds": (seed,), **fields})


#: Due in different ticks, with steps, guidance, thresholds and numbers of images of their own.
MANY = {
    _job("a"): 0,
    _job("b", 6, 1, CACHE.model_copy(update={"residual_diff_threshold": 0.1}), guidance_scale=1.5): 0,
    _job("c", 8, 2, CACHE.model_copy(update={"warmup_steps": 1, "taylor_order": 1}), seeds=(2, 3)): 2,
    _job("other method", 5, 4, NoCacheOptions()): 1,
    _job("other size", 4, 5, size="96x64"): 1,
    _job("late", 3, 6): 7,
}


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


def _draw_and_drop(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    alone, together = _rank(folder, 0, 1), _rank(folder, rank, world_size)
    latents = [[_latents(who, *shape) for who in (alone, together)] for shape in ((64, 1), (96, 2))]
    answer: dict[str, Any] = {"latents": latents, "fresh": draw(together, {_job("fresh"): 0})}
    answer["after"] = []
    for step in range(1, STEPS + 1):
        jobs = {_job(f"dropped {step}", seed=1): 0, _job(f"other {step}"): 1}
        answer["after"].append(draw(together, jobs, abort={f"dropped {step}": step}))
    answer["many"] = draw(together, MANY)
    answer["each"] = {job.id: draw(alone, {job: 0}) for job in MANY}
    together.settle()
    answer["timeout_s"] = together._group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    return answer


@pytest.mark.parametrize("world_size", [2, 4])
def test_four_draw_what_one_draws_many_at_once(model: Path, world_size: int):
    answers = run_ranks(world_size, _draw_and_drop, model, timeout=240)
    for answer in answers:
        for alone, together in answer["latents"]:
            assert alone.std() > 0.1, "latents that are all alike would be equal for the wrong reason"
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert [answer["timeout_s"] for answer in answers] == [77] * world_size, "the decisions' group, and no other's"

    first = answers[0]
    fresh: JobOutput = first["fresh"].outputs["fresh"]
    assert fresh.report["totals"]["cached_steps"][0] > 0
    for step, drawn in enumerate(first["after"], start=1):
        assert list(drawn.outputs) == [f"other {step}"]
        _equal(drawn.outputs[f"other {step}"], fresh)

    many = first["many"]
    outputs = whole([answer["many"] for answer in answers])
    rows = sorted(list(answer["many"].decoded["c"]) for answer in answers)
    assert rows == [[]] * (world_size - 2) + [[0], [1]], "two ranks decode a row each"
    assert max(len(call.jobs) for call in many.calls) == 3
    assert [call.jobs for answer in answers for call in answer["many"].calls] == world_size * [
        call.jobs for call in many.calls
    ]
    for job in MANY:
        expected = first["each"][job.id]
        _equal(outputs[job.id], expected.outputs[job.id])
        told = [(event.step, event.cached) for event in many.progress[job.id]]
        assert told == [(event.step, event.cached) for event in expected.progress[job.id]]
        assert [event.step for event in many.progress[job.id]] == list(range(1, job.num_inference_steps + 1))
    assert all(not answer["many"].outputs and not answer["many"].progress for answer in answers[1:])


def _equal(output: JobOutput, expected: JobOutput) -> None:
    """The same decisions, and pixels but for rounding."""
    if expected.report is not None:
        decided, wanted = ([_decided(step) for step in each.report["steps"]] for each in (output, expected))
        assert decided == wanted
    assert np.abs(output.images.astype(int) - expected.images.astype(int)).max() <= 1
    assert expected.images.std() > 5


def _decided(step: dict[str, Any]) -> list[Any]:
    return [step["step"], step["branch"], [(image["cached"], image["reason"]) for image in step["images"]]]


def _draw_compiled(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    expected = draw(_rank(folder, rank, world_size), {_job("plain"): 0})
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

    rank_module.BlockCompiler = functools.partial(BlockCompiler, backend)  # this process ends with the test
    made = _rank(folder, rank, world_size, compile=True)
    drawn, calls = draw(made, {_job("compiled"): 0}), ran
    if rank == 1:
        made._compiler.give_up("no compiler here")
    mixed, alone = draw(made, {_job("mixed"): 100}, first=100), ran
    made.settle()
    failed = draw(made, {_job("failed"): 200}, first=200)
    return {
        "plain": expected,
        "compiled": drawn,
        "mixed": mixed,
        "failed": failed,
        "traced": traced,
        "ran": [calls, alone - calls, ran - alone],
        "failure": made._compiler.failure,
    }


def test_compiled_blocks_draw_the_same_on_two_ranks(model: Path):
    """Also while only one of them can compile; when they settle, they agree that none does."""
    answers = run_ranks(2, _draw_compiled, model, timeout=240)
    first = answers[0]
    plain = first["plain"].outputs["plain"]
    for name in ("compiled", "mixed", "failed"):
        output = first[name].outputs[name]
        np.testing.assert_array_equal(output.images, plain.images)
        assert output.report == plain.report
    assert plain.report["totals"]["cached_steps"][0] > 0
    for answer in answers:
        assert all("all_to_all" in graph for graph in answer["traced"])
        assert 0 < len(answer["traced"]) < answer["ran"][0], "one graph serves all steps"
        assert answer["failure"].endswith("no compiler here")
    assert [answer["ran"][1:] for answer in answers] == [[first["ran"][0], 0], [0, 0]]
