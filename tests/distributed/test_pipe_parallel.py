"""Plug-and-play together with context parallelism: two ranks draw and decide as one, and never alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cache_core import CacheReport, apply_cache_on_pipe, cache_reports, cache_session, find_group, remove_cache
from raycache.demo.noise import build_noise_model
from tests.helpers.flux_pipe import draw, load
from tests.helpers.ranks import run_ranks

METHODS: list[dict[str, Any]] = [
    {
        "cache_type": "DBCache",
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 2,
        "Bn_compute_blocks_ids": [1],
        "warmup_steps": 2,
        "residual_diff_threshold": 0.3,
        "non_compute_blocks_diff_threshold": 0.3,
    },
    {
        "cache_type": "DBPrune",
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 1,
        "warmup_steps": 2,
        "residual_diff_threshold": 0.15,
    },
]


def _draw(pipe: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Two images of one call, what was decided for them, and by how many all-reduces."""
    apply_cache_on_pipe(pipe, **options)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    latents = draw(pipe, num_images_per_prompt=2, generator=generators, true_cfg_scale=2.0, negative_prompt="blue")
    report: CacheReport = cache_reports(pipe)["transformer"]
    return {
        "latents": latents,
        "decisions": [[(i.cached, i.reason, i.pruned_blocks) for i in step.images] for step in report.steps],
        "differences": [
            d for step in report.steps for i in step.images for d, _ in i.differences.values() if d is not None
        ],
        "collectives": report.collectives,
    }


def _errors(call: Any) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def _on_every_rank(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    import torch.distributed as dist
    from para_attn.context_parallel.diffusers_adapters import parallelize_pipe

    alone, cached_first, split_first = (load(folder) for _ in range(3))
    answer: dict[str, Any] = {"alone": [_draw(alone, options) for options in METHODS]}

    apply_cache_on_pipe(cached_first, **METHODS[0])
    parallelize_pipe(cached_first)
    parallelize_pipe(split_first)
    answer["before"] = [_draw(cached_first, options) for options in METHODS]
    answer["after"] = [_draw(split_first, options) for options in METHODS]

    transformer = split_first.transformer
    answer["group"] = dist.get_process_group_ranks(find_group(transformer))
    answer["lone session"] = _errors(lambda: cache_session(transformer, {"type": "none"}).__enter__())
    answer["early removal"] = _errors(lambda: remove_cache(cached_first))
    answer["removal"] = _errors(lambda: remove_cache(split_first))

    # Parallelized by somebody whose group cannot be found: refused, unless the group is given.
    alone.transformer._is_parallelized = True
    answer["unknown group"] = _errors(lambda: draw(alone))
    apply_cache_on_pipe(alone, **METHODS[0], group=dist.group.WORLD)
    draw(alone)
    answer["given group"] = cache_reports(alone)["transformer"].collectives

    # What diffusers' own enable_parallelism leaves on a transformer, as far as the group goes.
    mesh = dist.init_device_mesh("cpu", (1, world_size), mesh_dim_names=("ring", "ulysses"))
    config = SimpleNamespace(context_parallel_config=SimpleNamespace(_flattened_mesh=mesh._flatten()))
    diffusers_way = load(folder).transformer
    diffusers_way._parallel_config = config
    answer["diffusers group"] = dist.get_process_group_ranks(find_group(diffusers_way))
    return answer


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = build_noise_model(tmp_path_factory.mktemp("models") / "noise", layers=2, single_layers=4)
    return run_ranks(2, _on_every_rank, folder, timeout=240)


@pytest.mark.parametrize("method", range(len(METHODS)), ids=[method["cache_type"] for method in METHODS])
@pytest.mark.parametrize("order", ["before", "after"])
def test_two_ranks_draw_and_decide_as_one(answers, order, method):
    for answer in answers:
        alone, together = answer["alone"][method], answer[order][method]
        assert together["decisions"] == alone["decisions"]
        assert together["differences"] == pytest.approx(alone["differences"], rel=1e-4, abs=1e-6)
        torch.testing.assert_close(together["latents"], alone["latents"], rtol=1e-4, atol=1e-4)
        assert alone["collectives"] == 0
        assert together["collectives"] == answers[0][order][method]["collectives"] >= len(alone["decisions"])
    reused = [cached or bool(pruned) for step in alone["decisions"] for cached, _, pruned in step]
    assert True in reused
    assert False in reused[4:]


def test_the_group_is_found_on_the_transformer(answers):
    assert [answer["group"] for answer in answers] == [[0, 1], [0, 1]]
    assert [answer["diffusers group"] for answer in answers] == [[0, 1], [0, 1]]


def test_no_rank_decides_alone(answers):
    for answer in answers:
        assert "is split over several ranks" in answer["lone session"]
        assert "its process group could not be found; pass group=" in answer["unknown group"]
        assert answer["given group"] > 0


def test_removing_the_cache_does_not_undo_the_parallelism_silently(answers):
    for answer in answers:
        assert "its forward was wrapped" in answer["early removal"]
        assert answer["removal"] == ""
