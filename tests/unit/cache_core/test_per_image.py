"""Images of one batch with thresholds of their own."""

from __future__ import annotations

import pytest
import torch

from cache_core import (
    BlockCountError,
    CacheOptions,
    DBCacheOptions,
    DBPruneOptions,
    FBCacheOptions,
    NoCacheOptions,
    cache_session,
)
from cache_core.policies.image_options import combined, without_thresholds
from tests.helpers.tiny_flux import Job, decisions, draw, draw_cached, gap, tiny_flux

MODEL = tiny_flux()
BASES: dict[str, CacheOptions] = {
    "DBCache": DBCacheOptions(
        Fn_compute_blocks=2, Bn_compute_blocks=3, Bn_compute_blocks_ids=(1,), warmup_steps=2,
        non_compute_blocks_diff_threshold=0.0,
    ),
    "FBCache": FBCacheOptions(warmup_steps=2, max_cached_steps=-1),
    "DBPrune": DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2),
    "DBPrune, dynamic": DBPruneOptions(
        Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2, enable_dynamic_prune_threshold=True
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", BASES)
def test_each_decides_as_it_would_alone(method):
    """The same image three times: never cached, sometimes, always. It differs with its threshold only."""
    each = [BASES[method].model_copy(update={"residual_diff_threshold": t}) for t in (0.0, 0.15, 5.0)]
    job = Job(seeds=(3, 3, 3), steps=10)
    outputs, report = draw_cached(MODEL, each, job)
    for image, options in enumerate(each):
        alone, single = draw_cached(MODEL, options, job.alone(image))
        assert decisions(report, image) == decisions(single)
        assert gap([o[image : image + 1] for o in outputs], alone) <= 1e-5
    never, sometimes, always = report.computed_block_fraction
    assert never == 1.0 > sometimes > always
    plain = draw(MODEL, job.alone(0))
    assert all(torch.allclose(a[:1], b, atol=1e-6) for a, b in zip(outputs, plain, strict=True))


def test_the_report_says_whose_threshold_is_whose():
    each = [DBCacheOptions(Fn_compute_blocks=2, Bn_compute_blocks=2, residual_diff_threshold=t) for t in (0.1, 0.2)]
    with cache_session(MODEL, each) as report:
        pass
    assert report.options == each[0].to_dict() | {"residual_diff_threshold": [0.1, 0.2]}
    with cache_session(MODEL, each[:1] * 2) as report:
        pass
    assert report.options == each[0].to_dict()


@pytest.mark.parametrize("values", [(0.1, 0.2, 0.1), (0.1, 0.1, 0.2), (0.2, 0.1, 0.1)])
@pytest.mark.parametrize(
    "name", ["residual_diff_threshold", "non_compute_blocks_diff_threshold", "max_dynamic_prune_threshold"]
)
def test_a_threshold_that_differs_anywhere_is_a_list(name: str, values: tuple[float, ...]):
    kind = DBPruneOptions if name == "max_dynamic_prune_threshold" else DBCacheOptions
    each = [kind(Fn_compute_blocks=1, Bn_compute_blocks=1, **{name: value}) for value in values]
    assert combined(each) == each[0].to_dict() | {name: list(values)}
    assert len({str(without_thresholds(own)) for own in each}) == 1


def test_a_difference_is_named_whoever_has_the_option():
    for each in ([NoCacheOptions(), FBCacheOptions()], [FBCacheOptions(), FBCacheOptions(), NoCacheOptions()]):
        with pytest.raises(ValueError, match=r"these do in max_cached_steps, .*type, warmup_steps$"):
            combined(each)


def test_one_for_all_may_stand_in_a_list():
    options, job = BASES["DBCache"], Job(seeds=(1, 2))
    in_list, _ = draw_cached(MODEL, [options], job)
    bare, _ = draw_cached(MODEL, options, job)
    assert all(torch.equal(a, b) for a, b in zip(in_list, bare, strict=True))


@pytest.mark.parametrize(
    ("each", "words"),
    [
        ([], "an empty list of options"),
        ([FBCacheOptions(), FBCacheOptions(warmup_steps=1, taylor_order=1)], "these do in taylor_order, warmup_steps$"),
        ([{"type": "FBCache"}, {"type": "none"}], "these do in .*type"),
    ],
)
def test_what_cannot_be_drawn_together(each, words):
    with pytest.raises(ValueError, match=words), cache_session(MODEL, each):
        pass


def test_options_for_another_number_of_images():
    each = [FBCacheOptions(warmup_steps=0)] * 3
    with pytest.raises(ValueError, match="options for 3 images, but the transformer was called with a batch of 2"):
        draw_cached(MODEL, each, Job(seeds=(1, 2)))
    draw_cached(MODEL, each, Job(seeds=(1, 2, 3)))  # nothing is left of it


def test_every_one_of_them_must_fit_the_model():
    with pytest.raises(BlockCountError), cache_session(MODEL, [DBCacheOptions()] * 2):
        pass
