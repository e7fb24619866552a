"""A gang that cannot be placed is explained: what is asked, what is there, what would fit."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.cluster.capacity import Gangs, fit_together, room_for_each, shortage, shortage_of_all

L20 = {"CPU": 1.0, "GPU": 1.0, "accelerator_type:L20": 0.001}
CPU = {"CPU": 0.25}


def test_a_gang_that_fits_is_no_news():
    assert shortage([L20] * 4, [{"CPU": 64.0, "GPU": 4.0, "accelerator_type:L20": 1.0}]) is None
    assert shortage([CPU] * 5, [{"CPU": 2.0}]) is None
    # 0.1 is no binary fraction: ten of them must still fit one CPU.
    assert shortage([{"CPU": 0.1}] * 10, [{"CPU": 1.0}]) is None


@pytest.mark.parametrize(
    ("bundles", "nodes", "replicas", "words"),
    [
        ([L20] * 4, [{"CPU": 2.0}], 1, ["4 GPU", "0 GPU", "2 CPU", "laptop_dbcache.yaml"]),
        ([L20] * 4, [{"CPU": 64.0, "GPU": 2.0, "accelerator_type:L20": 1.0}], 1, ["ranks_per_replica to 2"]),
        (
            [L20] * 4,
            [{"CPU": 64.0, "GPU": 3.0, "accelerator_type:L20": 1.0}] * 2,
            1,
            ["3 GPU", "ranks_per_replica to 2"],
        ),
        ([L20] * 4, [{"CPU": 64.0, "GPU": 4.0, "accelerator_type:A100": 1.0}], 1, ["accelerator_type:A100"]),
        ([{"CPU": 1.0}] * 5, [{"CPU": 2.0}], 1, ["5 CPU", "rank_cpus"]),
        ([L20] * 4, [{"CPU": 64.0, "GPU": 8.0, "accelerator_type:L20": 1.0}], 3, ["num_replicas: 2"]),
        ([CPU], [], 1, ["no node"]),
    ],
)
def test_a_shortage_is_explained(bundles, nodes, replicas, words):
    text = shortage(bundles, nodes, replicas)
    for word in words:
        assert word in text


FOUR, TWO = {"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}


def gpus(count: int) -> list[dict[str, float]]:
    """A gang of so many ranks."""
    return [{"CPU": 0.1}, *[{"CPU": 0.1, "GPU": 1.0}] * count]


@pytest.mark.parametrize(
    ("ranks", "nodes", "fit"),
    [
        ([4], [FOUR], True),
        ([4, 4], [FOUR], False),
        ([4, 4], [FOUR, FOUR], True),
        ([2, 4], [FOUR, TWO], True),
        ([2, 2, 2, 4], [FOUR, TWO, FOUR], True),
        ([2, 2, 2, 2, 4], [FOUR, TWO, FOUR], False),
        ([3, 3, 2], [FOUR, FOUR], False),  # enough in sum, but on no two nodes
        ([3, 1, 3, 1], [FOUR, FOUR], True),
        ([], [], True),
        ([1], [], False),
    ],
)
def test_gangs_of_several_models_fit_together_or_do_not(ranks: list[int], nodes: list[dict[str, float]], fit: bool):
    assert fit_together([gpus(count) for count in ranks], nodes) is fit


@given(st.lists(st.integers(1, 4), max_size=5), st.lists(st.integers(1, 5), max_size=3))
def test_what_is_said_to_fit_is_what_some_way_of_placing_shows(ranks: list[int], nodes: list[int]):
    """Against all ways, one by one."""
    ways = itertools.product(range(len(nodes)), repeat=len(ranks))
    loads = (
        [sum(r for r, at in zip(ranks, way, strict=True) if at == node) for node in range(len(nodes))] for way in ways
    )
    shown = any(all(load <= size for load, size in zip(one, nodes, strict=True)) for one in loads)
    there = [{"CPU": 99.0, "GPU": float(size)} for size in nodes]
    assert fit_together([gpus(count) for count in ranks], there) is shown


def test_too_many_ways_are_no_reason_to_refuse():
    """It ends at once, and what nobody has refuted may be tried."""
    nodes = [{"CPU": 99.0, "GPU": 10.0 + k / 100} for k in range(40)]
    assert fit_together([[{"GPU": 2.6}] for _ in range(121)], nodes)


def test_a_shortage_names_the_model_or_all_of_them():
    one, other = Gangs("one", gpus(4)), Gangs("other", gpus(2), 2)
    assert shortage_of_all([one, other], [FOUR, FOUR]) is None
    assert shortage_of_all([one], [TWO]) == shortage(one.bundles, [TWO])
    assert (told := shortage_of_all([one, other], [TWO, TWO])) is not None
    assert told.startswith("model 'one': this cluster cannot hold 1 gang")
    assert (told := shortage_of_all([one, other], [FOUR])) is not None
    for words in ("not all together", "1 of 'one' with 4.", "2 of 'other'", "It has 8 CPU, 4 GPU", "num_replicas"):
        assert words.replace("4.", "") in told
    assert shortage_of_all([one, Gangs("asleep", gpus(4), 0)], [FOUR]) is None


@pytest.mark.parametrize(
    ("ranks", "free", "room"),
    [
        ([4], [FOUR], [True]),
        ([4], [TWO, TWO], [False]),
        ([2, 2], [FOUR], [True, True]),
        ([4, 2], [FOUR], [False, False]),  # the small one may take the place of the large one
        ([4, 2], [FOUR, TWO], [False, True]),
        ([4, 2], [FOUR, FOUR], [True, True]),
        ([4, 2], [], [False, False]),
    ],
)
def test_new_engines_come_beside_the_old_where_no_other_model_can_take_their_place(ranks, free, room):
    assert room_for_each([gpus(count) for count in ranks], free) == room
