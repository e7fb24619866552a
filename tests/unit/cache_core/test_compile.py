"""torch.compile: every way that users have keeps every block compiled, and caching adds no graph of its own."""

from __future__ import annotations

import gc
import logging
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn
from torch._dynamo.utils import counters

from cache_core import DBCacheOptions, DBPruneOptions, FBCacheOptions, NoCacheOptions, cache_session
from cache_core.blocks import BlockCall
from cache_core.hooks import attachment_of
from tests.helpers.compiling import (
    WAYS,
    Counting,
    attached_then_repeated,
    blocks_of,
    regional,
    repeated,
    small_flux,
    whole,
    whole_in_place,
)
from tests.helpers.tiny_flux import Job, decisions, draw, tiny_flux

pytestmark = pytest.mark.slow  # each compiles for seconds

#: A block's graph is one of three: double; first single (two tensors); later singles (two views of one tensor).
GRAPHS = 3

REQUESTS = [
    DBCacheOptions(Fn_compute_blocks=2, Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=0.3),
    DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=0.1),
    DBPruneOptions(Fn_compute_blocks=0, Bn_compute_blocks=0, warmup_steps=1, residual_diff_threshold=0.2),
    FBCacheOptions(warmup_steps=1, residual_diff_threshold=0.2, taylor_order=1),
    NoCacheOptions(),
]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()


every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


@pytest.fixture
def runs(monkeypatch) -> list[str]:
    """The name of the block for every time that one really ran."""
    seen: list[str] = []
    for method in ("compute", "compute_rows"):
        original = getattr(BlockCall, method)

        def spy(self: BlockCall, *args: Any, _original=original) -> Any:
            seen.append(self.block.name)
            return _original(self, *args)

        monkeypatch.setattr(BlockCall, method, spy)
    return seen


@every_way
def test_every_block_runs_compiled_and_no_request_compiles_again(way, runs):
    backend, eager = Counting(), small_flux()
    model, job = way(small_flux(), backend=backend), Job(steps=6)
    for options in [*REQUESTS, REQUESTS[0]]:
        with cache_session(eager, options) as expected:
            outputs = draw(eager, job)
        runs.clear()
        before = backend.calls
        with cache_session(model, options) as report:
            compiled = draw(model, job)
        assert backend.calls - before == len(runs) == sum(s.images[0].computed_blocks for s in expected.steps)
        assert backend.graphs == GRAPHS
        assert decisions(report) == decisions(expected)
        for ours, theirs in zip(compiled, outputs, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    breaks = [reason for reason in counters["graph_break"] if "_RootHook.new_forward" not in reason]
    assert breaks == [], "a graph break inside a block"


def graphs_by_size(model: nn.Module, backend: Counting, options: Any) -> list[int]:
    """Graphs so far after each of several image sizes."""
    graphs = []
    for side in (4, 6, 8):
        with nullcontext() if options is None else cache_session(model, options):
            draw(model, Job(steps=4, side=side))
        graphs.append(backend.graphs)
    return graphs


def test_new_sizes_cost_what_they_cost_without_a_cache():
    plain, backend = Counting(), Counting()
    expected = graphs_by_size(regional(small_flux(), backend=plain), plain, None)
    assert expected[2] == expected[1], "sizes are dynamic from the second on"
    torch._dynamo.reset()
    assert graphs_by_size(whole(small_flux(), backend=backend), backend, REQUESTS[0]) == expected


def test_images_that_disagree_run_compiled(runs):
    """Blocks see sub-batches of one and two images then: a batch is dynamic from two on, so three images add none."""
    backend, graphs = Counting(), []
    model = whole(small_flux(), backend=backend)
    for seeds in ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)):
        with cache_session(model, REQUESTS[1]) as report:
            draw(model, Job(seeds=seeds, steps=6))
        graphs.append(backend.graphs)
    assert any(len({tuple(image.pruned_blocks) for image in step.images}) > 1 for step in report.steps)
    assert backend.calls == len(runs)
    assert graphs[1] == graphs[2] == graphs[3]


@pytest.mark.parametrize("way", [regional, repeated, whole, whole_in_place], ids=lambda way: way.__name__)
def test_detaching_brings_the_users_compilation_back(way):
    backend, job = Counting(), Job(steps=2)
    model = way(small_flux(), backend=backend)
    inner = getattr(model, "_orig_mod", model)
    before = {block: (block.forward, block._compiled_call_impl) for block in blocks_of(inner)}
    expected = draw(model, job)
    with cache_session(model, REQUESTS[0]):
        draw(model, job)
    assert attachment_of(inner) is None
    assert {block: (block.forward, block._compiled_call_impl) for block in blocks_of(inner)} == before
    calls, graphs = backend.calls, backend.graphs
    for ours, theirs in zip(draw(model, job), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert backend.calls > calls
    assert backend.graphs == graphs, "the graphs of before are found again"


def test_without_a_session_attached_blocks_stay_compiled():
    backend = Counting()
    model = attached_then_repeated(small_flux(), backend=backend)
    draw(model, Job(steps=3))
    assert (backend.graphs, backend.calls) == (GRAPHS, 3 * 5)


@pytest.mark.parametrize("way", [whole, whole_in_place], ids=lambda way: way.__name__)
def test_fullgraph_over_the_whole_is_refused(way):
    model = way(small_flux(), fullgraph=True)
    with pytest.raises(ValueError, match=r"FluxTransformer2DModel was compiled with fullgraph=True.*block by block"):
        cache_session(model, NoCacheOptions()).__enter__()
    assert attachment_of(getattr(model, "_orig_mod", model)) is None


@pytest.mark.parametrize("way", [regional, repeated, whole], ids=lambda way: way.__name__)
def test_cuda_graphs_are_refused(way):
    model = way(small_flux(), mode="reduce-overhead") if way is not repeated else small_flux()
    if way is repeated:
        model.compile_repeated_blocks(mode="reduce-overhead")
    with (
        pytest.raises(ValueError, match=r"does not work with CUDA graphs.*max-autotune-no-cudagraphs"),
        cache_session(model, NoCacheOptions()),
    ):
        draw(model, Job(steps=1))


def test_blocks_that_would_silently_run_eagerly_are_reported_once(caplog):
    model = small_flux()
    compiled = torch.compile(model, backend=Counting())
    with caplog.at_level(logging.WARNING, "cache_core"), cache_session(model, NoCacheOptions()):
        draw(compiled, Job(steps=3))
    assert [record.getMessage()[:60] for record in caplog.records] == [
        "FluxTransformer2DModel is called through torch.compile, but "
    ]


def test_no_such_report_when_the_blocks_are_compiled(caplog):
    model = regional(small_flux(), backend=Counting())
    compiled = torch.compile(model, backend=Counting())
    with caplog.at_level(logging.WARNING, "cache_core"), cache_session(model, NoCacheOptions()):
        draw(compiled, Job(steps=2))
    assert not caplog.records


def test_a_block_that_another_hook_wrapped_is_compiled_too():
    class Doubling(ModelHook):
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return tuple(2 * tensor for tensor in output)

    backend, model = Counting(), small_flux()
    HookRegistry.check_if_exists_or_initialize(model.transformer_blocks[1]).register_hook(Doubling(), "doubling")
    expected = draw(model, Job(steps=2))
    compiled = whole(model, backend=backend)
    with cache_session(compiled, NoCacheOptions()):
        outputs = draw(compiled, Job(steps=2))
    assert backend.calls == 2 * 5
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", [regional, whole], ids=lambda way: way.__name__)
def test_nothing_of_a_request_outlives_it(way):
    model, job = way(small_flux(), backend=Counting()), Job(steps=4)
    sessions, sizes = [], []
    for options in REQUESTS[:3]:
        with cache_session(model, options):
            draw(model, job)
            sessions.append(weakref.ref(attachment_of(getattr(model, "_orig_mod", model)).session))
        gc.collect()
        sizes.append(sum(t.nbytes for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)))
    assert [session() for session in sessions] == [None, None, None]
    assert sizes[1] == sizes[2]


def test_inductor_draws_the_same():
    """The real compiler once, on two blocks of one graph: it is slow."""
    eager, job = tiny_flux(2, 0), Job(steps=5)
    model = torch.compile(tiny_flux(2, 0))
    options = FBCacheOptions(warmup_steps=1, residual_diff_threshold=0.5)
    with cache_session(eager, options) as expected:
        outputs = draw(eager, job)
    with cache_session(model, options) as report:
        compiled = draw(model, job)
    assert report.cached_steps == expected.cached_steps
    assert expected.cached_steps != [0]
    torch.testing.assert_close(compiled, outputs, rtol=1e-4, atol=1e-5)
