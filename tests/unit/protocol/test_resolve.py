"""What is wrong is refused with the field, the reason and a legal value that is really legal."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_core.options import DBCacheOptions, DBPruneOptions, FBCacheOptions, NoCacheOptions
from raycache.protocol.cache_choice import silent_cache
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError
from raycache.protocol.resolve import check_deployment, resolve
from raycache.protocol.schemas import GenerationRequest
from raycache.protocol.sizes import check_size, nearest_sizes
from raycache.settings import AppSettings, LimitSettings
from raycache.size import Size

MODEL = Capabilities("noise", 57, 4, 64, "FluxPipeline", 16)
SETTINGS = AppSettings.model_validate({"model": {"path": "noise"}, "limits": {"max_prompt_characters": 50}})


def ask(*, ranks: int = 4, policy=SETTINGS.policy, **fields):
    request = GenerationRequest(**{"prompt": "a circle", **fields})
    return resolve(request, policy, MODEL, model_name="flux", ranks=ranks)


def refusal(**fields) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ask(**fields)
    return caught.value


def test_every_default_is_filled_in():
    order = ask()
    assert str(order.size) == "1024x1024"
    assert order.num_inference_steps == 28
    assert order.guidance_scale == 3.5
    assert order.cache == DBCacheOptions()
    assert order.model == "flux"
    assert order.timeout_s == 300
    assert 0 <= order.seed < 2**32


def test_what_the_user_said_stays():
    order = ask(size="256x128", seed=0, guidance_scale=0.0, cache=NoCacheOptions(), timeout_s=1.5)
    assert (str(order.size), order.seed, order.guidance_scale, order.timeout_s) == ("256x128", 0, 0.0, 1.5)
    assert order.cache == NoCacheOptions()


def test_a_deadline_is_bounded_by_the_limit_or_by_the_default_where_that_is_longer():
    assert ask(timeout_s=3600).timeout_s == 3600
    error = refusal(timeout_s=1e5)
    assert (error.status, error.param) == (400, "timeout_s")
    assert "nearest legal value: 3600" in error.message
    patient = SETTINGS.policy.changed({"request_timeout_s": 1e6, "limits": {"max_timeout_s": 10}})
    assert ask(policy=patient, timeout_s=1e6).timeout_s == ask(policy=patient).timeout_s == 1e6


def test_a_size_has_one_spelling():
    """The bundled model's warning, metrics and batches go by it."""
    assert str(ask(size="0128x00128").size) == "128x128"


def test_size_auto_is_the_default():
    assert str(ask(size="auto").size) == "1024x1024"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"size": "130x128"}, "size", ["multiples of 16", "128x128"]),
        ({"size": "0x128"}, "size", ["multiples of 16", "16x128"]),
        ({"size": "144x144"}, "size", ["81 image tokens", "4 ranks", "144x128", "128x144"]),
        ({"size": "4096x4096"}, "size", ["16777216 pixels", "4194304", "2048x2048"]),
        ({"size": "big"}, "size", ["WIDTHxHEIGHT", "1024x1024"]),
        ({"size": "128x-128"}, "size", ["WIDTHxHEIGHT"]),
        ({"size": "\u0661\u0662\u0668x128"}, "size", ["WIDTHxHEIGHT"]),
        ({"size": "16384x256", "output_format": "webp"}, "output_format", ["16383", "16384x256", "png"]),
        ({"size": "16x65536", "output_format": "jpeg"}, "output_format", ["65500", "16x65536", "png"]),
        ({"n": 5}, "n", ["5", "nearest legal value: 4"]),
        ({"num_inference_steps": 101}, "num_inference_steps", ["nearest legal value: 100"]),
        ({"prompt": "x" * 51}, "prompt", ["51 characters", "50"]),
        ({"prompt": " \n "}, "prompt", ["white space"]),
        (
            {"cache": DBCacheOptions(Fn_compute_blocks=30, Bn_compute_blocks=30)},
            "cache.Bn_compute_blocks",
            ["57 blocks", "27"],
        ),
        ({"cache": DBCacheOptions(Fn_compute_blocks=58)}, "cache.Fn_compute_blocks", ["57"]),
        ({"cache": DBPruneOptions(non_prune_blocks_ids=(3, 57))}, "cache.non_prune_blocks_ids", ["57", "[3]"]),
    ],
)
def test_refusals(fields, param, words):
    error = refusal(**fields)
    assert (error.status, error.param) == (400, param)
    for word in words:
        assert word in error.message


def test_the_model_tells_which_sizes_it_can_draw():
    coarse = replace(MODEL, token_side=32)
    with pytest.raises(RequestError, match=r"multiples of 32, got 144x128.*(128x128|160x128)"):
        resolve(GenerationRequest(prompt="x", size="144x128"), SETTINGS.policy, coarse, model_name="flux", ranks=4)
    assert str(ask(size="144x128", ranks=2).size) == "144x128"


def test_another_model_is_404():
    error = refusal(model="sd3")
    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")


@pytest.mark.parametrize(
    ("key", "priority", "allowed"),
    [
        (None, "high", True),
        ("team red", "normal", True),
        ("team red", "low", True),
        ("team red", "high", False),
        ("team blue", "high", True),
        ("batch", "normal", False),
        ("batch", "low", True),
    ],
)
def test_a_key_may_name_priorities_up_to_its_own(key, priority, allowed):
    keys = {"team blue": {"max_priority": "high"}, "batch": {"max_priority": "low"}}
    policy = SETTINGS.policy.changed({"limits": {"keys": keys}})
    request = GenerationRequest(prompt="a circle", priority=priority)
    if allowed:
        assert resolve(request, policy, MODEL, model_name="flux", ranks=4, key=key).priority == priority
        return
    with pytest.raises(RequestError, match=f"'{priority}' is more than the '(low|normal)' allowed") as caught:
        resolve(request, policy, MODEL, model_name="flux", ranks=4, key=key)
    assert (caught.value.status, caught.value.param, caught.value.code) == (403, "priority", "priority_not_allowed")


def test_prompt_is_never_in_a_refusal():
    assert "secret" not in refusal(prompt="secret " * 50).message


def test_no_repr_shows_the_prompt():
    assert "secret" not in repr(ask(prompt="secret"))


@given(
    st.integers(0, 99_999),
    st.integers(0, 99_999),
    st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8]),
    st.integers(32 * 32 * 8, 4_000_000),
    st.sampled_from([8, 16, 32]),
    st.booleans(),
)
def test_nearest_sizes_are_legal(width, height, ranks, max_pixels, side, uneven):
    sizes = nearest_sizes(Size(width, height), side=side, ranks=ranks, max_pixels=max_pixels, uneven=uneven)
    assert sizes
    for size in sizes:
        check_size(size, side=side, ranks=ranks, max_pixels=max_pixels, uneven=uneven)


def test_nearest_size_of_a_legal_size_is_itself():
    assert nearest_sizes(Size(256, 128), side=16, ranks=4, max_pixels=1 << 20)[0] == Size(256, 128)


@pytest.mark.parametrize(("ranks", "legal"), [(3, "1, 2, 4"), (8, "1, 2, 4")])
def test_a_model_that_does_not_divide_is_refused_at_start(ranks, legal):
    settings = SETTINGS.model_copy(
        update={"parallel": SETTINGS.parallel.model_copy(update={"ranks_per_replica": ranks})}
    )
    with pytest.raises(ValueError, match=f"legal values: {legal}"):
        check_deployment(settings, settings.policy, MODEL)


def over_ranks(ranks: int) -> AppSettings:
    parallel = SETTINGS.parallel.model_copy(update={"ranks_per_replica": ranks})
    return SETTINGS.model_copy(update={"parallel": parallel})


def test_a_model_that_splits_unevenly_needs_one_head_and_one_text_token_for_each_rank():
    model = replace(MODEL, num_heads=3, text_tokens=333, uneven=True)
    for ranks in (1, 2, 3):
        check_deployment(over_ranks(ranks), SETTINGS.policy, model)
    with pytest.raises(ValueError, match=r"3 attention heads are fewer than 4 ranks; legal values: 1, 2, 3$"):
        check_deployment(over_ranks(4), SETTINGS.policy, model)
    with pytest.raises(ValueError, match=r"2 text tokens are fewer than 3 ranks; legal values: 1, 2$"):
        check_deployment(over_ranks(3), SETTINGS.policy, replace(model, text_tokens=2))


def test_sizes_of_a_model_that_splits_unevenly_need_not_divide():
    model = replace(MODEL, uneven=True)
    request = GenerationRequest(prompt="x", size="144x144")
    assert str(resolve(request, SETTINGS.policy, model, model_name="flux", ranks=4).size) == "144x144"
    with pytest.raises(RequestError, match=r"16x48 makes 3 image tokens, but each of 4 ranks needs one.*16x64"):
        resolve(request.model_copy(update={"size": "16x48"}), SETTINGS.policy, model, model_name="flux", ranks=4)


def test_defaults_that_break_the_limits_are_refused_at_start():
    settings = SETTINGS.model_copy(update={"limits": LimitSettings(max_pixels=512 * 512)})
    with pytest.raises(ValueError, match="defaults break its own limits"):
        check_deployment(settings, settings.policy, MODEL)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (DBCacheOptions(warmup_steps=28), "warmup_steps=28"),
        (DBCacheOptions(residual_diff_threshold=0.0), "residual_diff_threshold"),
        (DBCacheOptions(max_cached_steps=0), "limit of 0"),
        (FBCacheOptions(max_continuous_cached_steps=0), "limit of 0"),
        (DBPruneOptions(max_pruned_steps=0), "max_pruned_steps"),
        (DBCacheOptions(Fn_compute_blocks=49), "every block"),
    ],
)
def test_a_cache_that_can_save_nothing_is_said_aloud(options, word):
    (warning,) = silent_cache(ask(cache=options), MODEL)
    assert word in warning


def test_a_working_cache_gets_no_warning():
    assert silent_cache(ask(), MODEL) == []
    assert silent_cache(ask(cache=NoCacheOptions()), MODEL) == []
