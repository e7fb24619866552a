"""The helper that all distributed tests trust must itself be able to fail, and to say where."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.helpers.ranks import RankError, run_ranks


def _sum_of_ranks(rank: int, world_size: int, offset: float) -> tuple[int, float]:
    value = torch.tensor([rank + offset])
    dist.all_reduce(value)
    return rank, value.item()


def _one_raises(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ZeroDivisionError("on purpose")
    dist.barrier()


def _one_dies(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(3)
    dist.barrier()


def _hashed(rank: int, world_size: int) -> int:
    return hash("a word")


def _sleeps(rank: int, world_size: int) -> None:
    time.sleep(60)


def test_results_come_in_order_of_ranks():
    assert run_ranks(3, _sum_of_ranks, 0.5) == [(0, 4.5), (1, 4.5), (2, 4.5)]


def test_sets_of_words_have_another_order_on_other_ranks():
    """Or a rank that went by it would be found in production only."""
    first, second = run_ranks(2, _hashed)
    assert first != second


@pytest.mark.parametrize(("fn", "kind"), [(_one_raises, "ZeroDivisionError"), (_one_dies, "died")])
def test_a_failing_rank_is_named(fn, kind):
    with pytest.raises(RankError) as caught:
        run_ranks(2, fn, timeout=40)
    assert (caught.value.rank, caught.value.kind) == (1, kind)


def test_a_rank_that_never_answers():
    with pytest.raises(RankError, match="rank 0: timeout"):
        run_ranks(1, _sleeps, timeout=1)
