"""The published README's example of context parallelism, by ranks that know cache_core and nothing of raycache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cache_core import cache_reports, cache_session, find_group, repair_para_attention
from tests.helpers.flux_pipe import draw, load
from tests.helpers.published_readme import PARALLEL, run_snippet
from tests.helpers.ranks import run_ranks


def _decisions(report: Any) -> list[tuple]:
    return [(i.reason, tuple(i.pruned_blocks)) for step in report.steps for i in step.images]


def _example(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    from cache_core.cache_factory import CacheType, apply_cache_on_pipe

    alone = apply_cache_on_pipe(load(folder), **CacheType.default_options(CacheType.DBPrune))
    one = draw(alone, num_inference_steps=12)
    pipe = run_snippet(PARALLEL, folder)["pipe"]
    both = draw(pipe, num_inference_steps=12)
    report = cache_reports(pipe)["transformer"]
    return {
        "gap": float((both - one).abs().max() / one.abs().max()),
        "decisions": _decisions(report) == _decisions(cache_reports(alone)["transformer"]),
        "pruned": sum(len(pruned) for _, pruned in _decisions(report)),
        "collectives": report.collectives,
        "raycache": sorted(name for name in sys.modules if name.partition(".")[0] == "raycache"),
    }


def _without_apply(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """A session of one's own on what ParaAttention split; and no cache at all, repaired by hand."""
    from para_attn.context_parallel.diffusers_adapters import parallelize_pipe

    by_session, bare = load(folder), load(folder)
    parallelize_pipe(by_session)
    parallelize_pipe(bare)
    broken = ""
    try:
        draw(bare)
    except TypeError as error:
        broken = str(error)
    with cache_session(by_session.transformer, {"type": "none"}, find_group(by_session.transformer)):
        images = [draw(by_session)]
    repair_para_attention()
    images.append(draw(bare))
    return {"broken": broken, "equal": torch.equal(*images)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from raycache.demo.noise import build_noise_model  # not at the top: the ranks import this module too

    return build_noise_model(tmp_path_factory.mktemp("models") / "noise", layers=10, single_layers=10)


def test_parallelize_then_cache_as_published(folder):
    for answer in run_ranks(2, _example, folder, timeout=240):
        assert answer["raycache"] == []
        assert answer["decisions"]
        assert answer["gap"] < 1e-4
        assert answer["pruned"] > 0
        assert answer["collectives"] >= 12


def test_a_session_repairs_what_it_runs_on_and_a_function_the_rest(folder):
    for answer in run_ranks(2, _without_apply, folder, timeout=240):
        assert "enable_gqa" in answer["broken"], "fails without the repair; if not, delete the repair"
        assert answer["equal"]
