"""DBCache and FBCache step for step beside cache-dit 1.5.3: same decisions, same differences, same outputs."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cache_core import BlockCountError, cache_session, parse_options
from tests.helpers.tiny_flux import Job, decisions, differences, draw_cached, gap, tiny_flux

pytest.importorskip("cache_dit", reason="the peer comes with the extra `test`")

# The peer alone takes more than a second, whichever test asks first.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def _dbcache(first: int, last: int, threshold: float, **more: Any) -> dict[str, Any]:
    return {
        "type": "DBCache",
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": last,
        "residual_diff_threshold": threshold,
        "warmup_steps": 1,
        "max_cached_steps": -1,
        "max_continuous_cached_steps": -1,
        **more,
    }


def _grid() -> list[dict[str, Any]]:
    """Fn and Bn on both sides of the border between the stacks (3 double, 5 single blocks), and every limit."""
    jobs = [Job(seeds=(seed,), steps=10) for seed in (1, 2, 3)]
    options = [
        _dbcache(first, last, threshold)
        for (first, last), threshold in itertools.product(
            [(1, 0), (1, 1), (2, 2), (3, 0), (3, 5), (4, 2), (1, 7), (2, 6), (8, 0)], (0.18, 0.25, 0.4)
        )
    ]
    options += [
        _dbcache(2, 1, 0.35, warmup_steps=warmup, max_cached_steps=cached, max_continuous_cached_steps=run)
        for warmup, cached, run in [*itertools.product((0, 3), (-1, 0, 1, 4), (-1, 0, 2)), (20, -1, -1), (20, 4, 2)]
    ]
    options += [_dbcache(1, 0, 0.0), _dbcache(1, 0, 0.999, warmup_steps=0)]
    options += [
        {k: v for k, v in _dbcache(1, 0, threshold, warmup_steps=warmup, max_cached_steps=8, type="FBCache").items()
         if k not in ("Fn_compute_blocks", "Bn_compute_blocks")}
        for threshold, warmup in itertools.product((0.18, 0.25, 0.4), (0, 2))
    ]  # fmt: skip
    grid = [{"options": o, "job": dataclasses.asdict(jobs[i % len(jobs)])} for i, o in enumerate(options)]
    odd = {
        "always": {"options": _dbcache(2, 1, 1.0), "job": dataclasses.asdict(jobs[0])},
        "overlap": {"options": _dbcache(5, 5, 0.25), "job": dataclasses.asdict(jobs[0])},
        "batch": {"options": _dbcache(1, 0, 0.25), "job": dataclasses.asdict(Job(seeds=(1, 2, 5), steps=10))},
    }
    return [*grid, *({**case, "odd": name} for name, case in odd.items())]


GRID = _grid()
SAME = [i for i, case in enumerate(GRID) if "odd" not in case]
ODD = {case["odd"]: i for i, case in enumerate(GRID) if "odd" in case}


@pytest.fixture(scope="module")
def peer() -> list[dict[str, Any]]:
    """The whole grid in one process: importing the peer costs more than running it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.peer"],
        input=json.dumps(GRID).encode(), cwd=ROOT, capture_output=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return torch.load(io.BytesIO(done.stdout), weights_only=True)


def _ours(case: dict[str, Any]) -> tuple[list[torch.Tensor], Any]:
    job = Job(**{**case["job"], "seeds": tuple(case["job"]["seeds"])})
    return draw_cached(tiny_flux(), parse_options(case["options"]), job)


def test_same_decisions_differences_and_outputs(peer):
    seen = set()
    for i in SAME:
        case, theirs = GRID[i], peer[i]
        outputs, report = _ours(case)
        ours = [d[0] for d in decisions(report)]
        assert [step for step, cached in enumerate(ours) if cached] == theirs["cached_steps"], case
        site = case["options"].get("Fn_compute_blocks", 1) - 1
        measured = {step: d[site] for step, d in enumerate(differences(report)) if d}
        assert measured == pytest.approx(theirs["differences"], abs=1e-5), case
        assert gap(outputs, theirs["outputs"]) <= 1e-5, case
        seen |= {d[1] for d in decisions(report)}
    # The grid is worth something only if every kind of decision occurs in it.
    assert seen == {"warmup", "first", "limit", "threshold", "below"}
    assert len({tuple(peer[i]["cached_steps"]) for i in SAME}) > 15


def test_on_purpose_a_threshold_of_one_is_compared_like_any_other(peer):
    """cache-dit skips without looking from 1.0 on, so an image that changes completely would still be served from the
    cache, and its difference is lost. Ours compares: the same decisions while differences are below 1, but known."""
    theirs = peer[ODD["always"]]
    assert set(theirs["differences"].values()) == {-1.0}
    _, report = _ours(GRID[ODD["always"]])
    assert [step for step, d in enumerate(decisions(report)) if d[0]] == theirs["cached_steps"]
    assert all(0 < d[1] < 1 for d in differences(report) if d)


def test_on_purpose_overlapping_fn_and_bn_are_refused(peer):
    """cache-dit runs the overlap twice, which changes the image even in steps that are computed. Ours refuses."""
    case = GRID[ODD["overlap"]]
    job = Job(**{**case["job"], "seeds": tuple(case["job"]["seeds"])})
    uncached, _ = draw_cached(tiny_flux(), {"type": "none"}, job)
    assert gap(peer[ODD["overlap"]]["outputs"][:1], uncached[:1]) > 1e-3
    with (
        pytest.raises(BlockCountError, match=r"5 \+ 5 = 10 is more than the model's 8 blocks"),
        cache_session(tiny_flux(), case["options"]),
    ):
        pass


def test_on_purpose_images_of_a_batch_decide_alone(peer):
    """cache-dit takes one number for the whole batch, so an image depends on its neighbours. Ours decides per image:
    each as if it were alone, and at least once otherwise than the common number would have it."""
    case = GRID[ODD["batch"]]
    job = Job(**{**case["job"], "seeds": tuple(case["job"]["seeds"])})
    _, report = _ours(case)
    theirs = [step in peer[ODD["batch"]]["cached_steps"] for step in range(job.steps)]
    apart = 0
    for image in range(len(job.seeds)):
        _, alone = draw_cached(tiny_flux(), parse_options(case["options"]), job.alone(image))
        assert decisions(report, image) == decisions(alone)
        apart += [d[0] for d in decisions(report, image)] != theirs
    assert apart
