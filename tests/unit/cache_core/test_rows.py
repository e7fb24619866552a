"""Guidance in one batch: each image has several rows, and all of them go by that image's own options."""

from __future__ import annotations

import pytest
import torch

from cache_core import CacheReport, cache_session, parse_options
from cache_core.policies.rows import images_of_rows
from tests.helpers.guided_pipes import GUIDED, draw_guided
from tests.helpers.tiny_transformers import build

METHODS = {
    "DBCache": {"Fn_compute_blocks": 1, "Bn_compute_blocks": 2, "Bn_compute_blocks_ids": (1,), "warmup_steps": 1},
    "DBPrune": {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 1},
}
SEEDS, THRESHOLDS = (1, 2, 3), (0.0, 0.45, 50.0)


def _options(method: str, threshold: float) -> dict:
    more = {"non_compute_blocks_diff_threshold": 0.0} if method == "DBCache" else {}
    return {"type": method, "residual_diff_threshold": threshold, **METHODS[method], **more}


def _row(report: CacheReport, row: int) -> list[tuple]:
    return [(d.cached, d.reason, tuple(d.pruned_blocks)) for step in report.steps for d in [step.images[row]]]


@pytest.fixture(scope="module")
def pipes():
    return {name: make() for name, (make, _) in GUIDED.items()}


@pytest.mark.parametrize("method", ["DBCache", pytest.param("DBPrune", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", GUIDED)
def test_image_k_with_options_k_is_what_it_is_alone(pipes, name, method):
    pipe, each = pipes[name], [_options(method, threshold) for threshold in THRESHOLDS]
    with cache_session(pipe.transformer, each) as report:
        together = draw_guided(name, pipe, SEEDS)
    count = len(SEEDS)
    assert {len(step.images) for step in report.steps} == {2 * count}
    for image, options in enumerate(each):
        with cache_session(pipe.transformer, options) as single:
            alone = draw_guided(name, pipe, SEEDS[image : image + 1])
        for half in range(2):
            assert _row(report, half * count + image) == _row(single, half)
        torch.testing.assert_close(together[image], alone[0], rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
    never, _, always = (report.computed_block_fraction[image] for image in range(count))
    assert never == 1.0 > always


def test_several_images_of_a_prompt_are_images_too(pipes):
    """Two prompts, two images each, two halves: eight rows for four entries, prompt after prompt."""
    pipe, thresholds = pipes["ZImagePipeline"], (0.0, 50.0, 50.0, 0.0)
    with cache_session(pipe.transformer, [_options("DBPrune", threshold) for threshold in thresholds]) as report:
        draw_guided("ZImagePipeline", pipe, (1, 2, 3, 4), per_prompt=2)
    computed = report.computed_block_fraction
    assert [share == 1.0 for share in computed] == 2 * [threshold == 0.0 for threshold in thresholds]


def test_options_for_prompts_are_not_taken_for_options_for_images(pipes):
    """Two entries for four images: taken by counting, images 2 and 3 would silently go by those of 0 and 1."""
    pipe, each = pipes["StableDiffusion3Pipeline"], [_options("DBCache", threshold) for threshold in (0.0, 50.0)]
    with (
        pytest.raises(
            ValueError, match=r"options for 2 images, .* a batch of 8 rows that do not hold the latents of 2"
        ),
        cache_session(pipe.transformer, each),
    ):
        draw_guided("StableDiffusion3Pipeline", pipe, (1, 2, 3, 4))


@pytest.mark.parametrize("repeats", [2, 3])
@pytest.mark.parametrize("order", ["half after half", "row by row"])
def test_rows_are_told_by_their_latents_in_either_order(order, repeats):
    """A caller of its own, that stacks as it likes: guidance of two or three parts."""
    model, images = build("SD3Transformer2DModel"), 3
    whose = [r % images if order == "half after half" else r // repeats for r in range(images * repeats)]
    noise = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(len(whose), 6, 16, generator=noise), torch.randn(len(whose), 16, generator=noise)
    latents = torch.randn(images, 4, 8, 8, generator=noise)
    with cache_session(model, [_options("DBCache", threshold) for threshold in (0.0, 50.0, 0.0)]) as report:
        for step in range(4):
            model(
                (latents + 0.1 * step)[whose],
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=torch.full((len(whose),), 900.0 - step),
            )
    cached = [row for row, steps in enumerate(report.cached_steps) if steps]
    assert cached == [row for row, image in enumerate(whose) if image == 1]


def test_which_image_a_row_belongs_to():
    a, b = torch.zeros(2), torch.ones(2)
    assert images_of_rows(1, 3, None) == [0, 0, 0]
    assert images_of_rows(3, 3, None) == [0, 1, 2]
    assert images_of_rows(2, 4, torch.stack([a, b, a, b])) == [0, 1, 0, 1]
    assert images_of_rows(2, 4, [a, a, b, b]) == [0, 0, 1, 1]
    assert images_of_rows(2, 4, [a, a, a, a]) == [0, 1, 0, 1], "equal images: as diffusers stacks them"
    assert images_of_rows(2, 4, [[a, b], [b], [a, b], [b]]) == [0, 1, 0, 1], "a row of several images"
    assert images_of_rows(2, 4, [[a], [a], [a, b], [a, b]]) == [0, 0, 1, 1], "one image is not the first of two"
    assert images_of_rows(2, 4, [[a], [a], [b], [b]]) == [0, 0, 1, 1]
    assert images_of_rows(2, 6, [a, a, a, b, b, b]) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="unknown which rows belong to which"):
        images_of_rows(2, 4, None)
    for images, latents in ((2, [a, b, b, a]), (3, [a, b, a, b]), (4, [a, b]), (2, [a, b, a])):
        with pytest.raises(ValueError, match=f"options for {images} images"):
            images_of_rows(images, 4 if images == 2 else len(latents), latents)


def test_an_option_for_each_row_still_works(pipes):
    pipe = pipes["StableDiffusion3Pipeline"]
    each = [parse_options(_options("DBPrune", threshold)) for threshold in (0.0, 50.0, 50.0, 0.0)]
    with cache_session(pipe.transformer, each) as report:
        draw_guided("StableDiffusion3Pipeline", pipe, (1, 2))
    assert [share == 1.0 for share in report.computed_block_fraction] == [True, False, False, True]
