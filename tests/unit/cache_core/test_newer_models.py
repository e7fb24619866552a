"""What single transformers of 2025 and 2026 need besides an entry in the table of blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

from cache_core import cache_session
from tests.helpers.conditioned_images import Images
from tests.helpers.tiny_transformers import TINY, build

FBCACHE = {"type": "FBCache", "residual_diff_threshold": 0.2, "warmup_steps": 1}


def inputs(name: str, step: int = 0, drift: float = 0.01) -> dict[str, Any]:
    return TINY[name].inputs(Images((1,), (drift,), step))


def kv_cache(name: str, mode: str | None) -> dict[str, Any]:
    """What its pipeline gives the transformer in the first of its calls, with a cache for keys and values."""
    if name == "QwenImage21Transformer2DModel":
        return {"kv_cache": QwenImage21KVCache(TINY[name].config["num_layers"]), "kv_cache_mode": mode}
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    caches = GlmImageKVCache(TINY[name].config["num_layers"])
    caches.set_mode(mode)
    return {"kv_caches": caches}


@pytest.mark.parametrize(
    ("name", "mode", "instead"),
    [
        ("QwenImage21Transformer2DModel", "extract", "use_kv_cache=False"),
        ("GlmImageTransformer2DModel", "write", "images as conditions"),
    ],
)
def test_a_cache_for_keys_and_values_is_refused_and_told_what_to_do_instead(name, mode, instead):
    model = build(name)
    given = inputs(name) | kv_cache(name, mode)
    with (
        torch.no_grad(),
        cache_session(model, FBCACHE),
        pytest.raises(RuntimeError, match=rf"a key-value cache.*{instead}.*type: none"),
    ):
        model(**given)
    with torch.no_grad(), cache_session(model, {"type": "none"}) as report:
        model(**given)
    assert len(report.steps) == 1


def test_glm_image_gives_a_cache_without_mode_where_no_image_is_a_condition():
    name = "GlmImageTransformer2DModel"
    model = build(name)
    with torch.no_grad(), cache_session(model, FBCACHE) as report:
        for step in range(3):
            model(**inputs(name, step), **kv_cache(name, None))
    assert report.cached_steps == [2]


def test_calls_with_the_same_text_that_guide_ltx2_are_branches_of_their_own():
    """Without `cache_context`: as usual, with one block perturbed, and with sound and video apart."""
    name = "LTX2VideoTransformer3DModel+2.3"
    model = build(name)
    guided = [{}, {"spatio_temporal_guidance_blocks": [1]}, {"isolate_modalities": True}]
    with torch.no_grad(), cache_session(model, FBCACHE) as report:
        for step in range(2):
            given = inputs(name, step) | {"spatio_temporal_guidance_blocks": None, "perturbation_mask": None}
            given["timestep"] = given["sigma"] = given["timestep"] - 100 * step
            for more in guided:
                model(**given | more)
    assert [(record.branch, record.step) for record in report.steps] == [
        (branch, step) for step in range(2) for branch in ("default", "default#2", "default#3")
    ]
