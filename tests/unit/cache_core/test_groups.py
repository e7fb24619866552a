"""Which ranks decide together: told from what ParaAttention and diffusers leave on a transformer, however wrapped.

Meshes, groups and both libraries are the real ones; torch's fake back end stands for the other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ParallelConfig, TensorParallelConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from cache_core import apply_cache_on_pipe, cache_session, find_group
from cache_core.parallel_group import is_parallelized
from tests.helpers.tiny_flux import tiny_flux
from tests.helpers.wrappers import WRAPPERS

FB = {"type": "FBCache"}


@pytest.fixture(autouse=True)
def rank_one_of_four(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)  # diffusers divides by it
    yield
    dist.destroy_process_group()


def _ranks(transformer: Any) -> list[int]:
    group = find_group(transformer)
    assert group is not None
    return dist.get_process_group_ranks(group)


def _para_attention(transformer: Any) -> Any:
    """Ranks 0, 1 draw one half of the batch, 2, 3 the other."""
    from para_attn.context_parallel import init_context_parallel_mesh
    from para_attn.context_parallel.diffusers_adapters import parallelize_transformer

    return parallelize_transformer(transformer, mesh=init_context_parallel_mesh("cpu", max_batch_dim_size=2))


def test_not_parallelized_decides_alone(flux):
    assert not is_parallelized(flux)
    assert find_group(flux) is None
    with cache_session(flux, FB):
        pass


@pytest.mark.parametrize(("ring", "ulysses"), [(2, 2), (1, 4), (4, 1)])
def test_diffusers_context_parallel(flux, ring, ulysses):
    flux.enable_parallelism(config=ContextParallelConfig(ring_degree=ring, ulysses_degree=ulysses))
    assert is_parallelized(flux)
    assert _ranks(flux) == [0, 1, 2, 3]


def test_diffusers_context_parallel_in_a_part_of_the_world(flux):
    mesh = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("data", "ring", "ulysses"))
    flux.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, mesh=mesh["ring", "ulysses"]))
    assert _ranks(flux) == [0, 1]


def test_diffusers_tensor_parallel(flux):
    """What ``enable_parallelism`` notes on the model; sharding the weights themselves wants CUDA."""
    config = ParallelConfig(tensor_parallel_config=TensorParallelConfig(tp_degree=2))
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tp"))["tp"]
    config.setup(1, 4, torch.device("cpu"), mesh=mesh)
    flux._parallel_config = config
    assert is_parallelized(flux)
    assert _ranks(flux) == [0, 1]
    with pytest.raises(RuntimeError, match="split over several ranks"), cache_session(flux, FB):
        pass


def test_para_attention():
    assert _ranks(_para_attention(tiny_flux())) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("inner", WRAPPERS)
@pytest.mark.parametrize("outer", WRAPPERS)
def test_para_attention_below_other_wrappers(inner, outer):
    transformer = _para_attention(tiny_flux())
    WRAPPERS[inner](transformer)
    WRAPPERS[outer](transformer)
    assert _ranks(transformer) == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), lambda _: None])
@pytest.mark.parametrize("first", ["cache", "parallel"])
def test_para_attention_around_or_inside_our_hooks(pipe, first, wrap: Callable[[Any], None]):
    """`parallelize_pipe` may come before the cache or after it."""
    steps = [lambda: apply_cache_on_pipe(pipe, **{"cache_type": "FBCache"}), lambda: _para_attention(pipe.transformer)]
    for step in steps if first == "cache" else steps[::-1]:
        step()
    wrap(pipe.transformer)
    assert _ranks(pipe.transformer) == [0, 1]


def test_a_group_that_cannot_be_told_is_asked_for(flux):
    flux._is_parallelized = True
    with pytest.raises(RuntimeError, match=r"process group could not be found; pass group="):
        find_group(flux)


@pytest.mark.parametrize("parallelize", [_para_attention, lambda m: m.enable_parallelism(
    config=ContextParallelConfig(ulysses_degree=4))], ids=["ParaAttention", "diffusers"])  # fmt: skip
def test_a_rank_never_decides_alone(flux, parallelize):
    parallelize(flux)
    with pytest.raises(RuntimeError, match="a rank that decides alone deadlocks the others"), cache_session(flux, FB):
        pass
    with cache_session(flux, FB, group=find_group(flux)):
        pass
