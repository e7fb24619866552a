"""What goes over the wire between ranks, and what is made of it: numbers written down by hand, no process started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cache_core.consensus import Consensus, GroupConsensus, RanksParted

CPU = torch.device("cpu")
MINE = object()  # stands for a process group


class Others:
    """The other ranks of the group: what they send, and what this rank sent them."""

    def __init__(self) -> None:
        self.send: list[list[float]] = []
        self.seen: list[list[float]] = []

    def reduce(self, vector: torch.Tensor, op: Any, group: Any) -> None:
        assert op == dist.ReduceOp.SUM
        assert group is MINE
        assert vector.dtype == torch.float32
        self.seen.append(vector.tolist())
        for row in self.send:
            vector += torch.tensor(row, dtype=torch.float32)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[Others]:
    them = Others()
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 1 + len(them.send) if group is MINE else 64)
    monkeypatch.setattr(dist, "all_reduce", lambda vector, op=None, group=None: them.reduce(vector, op, group))
    return them


def _pair(difference: float, reference: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(difference), torch.tensor(reference)


def test_sums_of_all_ranks(others):
    """Two images, one that asks; three ranks with uneven shards."""
    others.send = [[0, 2.0, 0, 20.0, 0, 77], [0, 4.0, 0, 70.0, 0, 77]]
    consensus = GroupConsensus(MINE)
    assert consensus.agree([None, _pair(1.0, 10.0)], False, 77, CPU) == ([None, (7.0, 100.0)], False)
    assert others.seen == [[0, 1.0, 0, 10.0, 0, 77]]


def test_a_method_with_more_sums_an_image_has_a_longer_vector_whoever_asks(others):
    others.send = [[0, 2.0, 0, 20.0, 0, 200.0, 0, 9]]
    asks = (*_pair(1.0, 10.0), torch.tensor(100.0))
    assert GroupConsensus(MINE).agree([None, asks], False, 9, CPU, 3) == ([None, (3.0, 30.0, 300.0)], False)
    assert Consensus().agree([asks, None, asks], False, 9, CPU, 3)[0] == [(1.0, 10.0, 100.0), None, (1.0, 10.0, 100.0)]
    GroupConsensus(MINE).agree([None, None], False, 9, CPU, 3)
    assert others.seen == [[0, 1.0, 0, 10.0, 0, 100.0, 0, 9], [0] * 7 + [9]]


def test_nobody_asks(others):
    others.send = [[0, 0, 0, 0, 0, 5]]
    assert GroupConsensus(MINE).agree([None, None], False, 5, CPU) == ([None, None], False)
    assert others.seen == [[0, 0, 0, 0, 0, 5]]


@pytest.mark.parametrize("mine", [False, True])
@pytest.mark.parametrize("theirs", [(0, 0, 0), (0, 1, 0), (1, 1, 1)])
def test_one_wish_is_enough(others, mine, theirs):
    others.send = [[0, 0, wish, 3] for wish in theirs]
    _, aborted = GroupConsensus(MINE).agree([None], mine, 3, CPU)
    assert aborted is (mine or any(theirs))
    assert others.seen[0][2] == float(mine)


@pytest.mark.parametrize("off", [-1, 1, -70, 900])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_one_other_checksum_is_enough(others, off, size):
    others.send = [[0, 0, 0, 100]] * (size - 2) + [[0, 0, 0, 100 + off]]
    with pytest.raises(RanksParted, match="not at the same decision"):
        GroupConsensus(MINE).agree([None], False, 100, CPU)


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float64])
def test_checksums_are_exact_on_256_ranks_whatever_the_default_dtype(others, default):
    others.send = [[0, 0, 0, 65535]] * 255
    torch.set_default_dtype(default)
    try:
        assert GroupConsensus(MINE).agree([None], False, 65535, CPU) == ([None], False)
        others.send[7] = [0, 0, 0, 65534]
        with pytest.raises(RanksParted):
            GroupConsensus(MINE).agree([None], False, 65535, CPU)
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_all_reduce_is_counted_and_waited_for(others, monkeypatch):
    others.send = [[0, 0, 0, 1]]
    ticks = iter([0.0, 2.0, 10.0, 15.0])
    monkeypatch.setattr("cache_core.consensus.time.perf_counter", lambda: next(ticks))
    consensus = GroupConsensus(MINE)
    consensus.agree([None], False, 1, CPU)
    consensus.agree([None], False, 1, CPU)
    assert consensus.collectives == 2
    assert consensus.wait_s == 7.0


def test_alone_nothing_is_reduced(others):
    consensus = Consensus()
    assert consensus.agree([_pair(1.0, 4.0), None, _pair(3.0, 8.0)], True, 9, CPU) == (
        [(1.0, 4.0), None, (3.0, 8.0)],
        True,
    )
    assert others.seen == []
    assert (consensus.collectives, consensus.wait_s) == (0, 0.0)
