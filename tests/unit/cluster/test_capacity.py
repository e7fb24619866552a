"""A gang that cannot be placed is explained: what is asked, what is there, what would fit."""

import pytest

from raycache.cluster.capacity import shortage

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
