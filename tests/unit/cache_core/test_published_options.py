"""Published options put into those that are there, one by one: what is dropped, what is refused, what is filled in."""

from __future__ import annotations

from typing import Any

import pytest

from cache_core import pipe as cached_pipe
from cache_core.cache_factory import apply_cache_on_pipe
from cache_core.cache_type import CacheType
from cache_core.published import translated, with_published_defaults

#: Each at a value that changes nothing, at others that are as good as off, and at one that would draw another image.
SWITCHES: dict[str, tuple[Any, tuple[Any, ...], Any]] = {
    "downsample_factor": (1, (None,), 2),
    "enable_alter_cache": (False, (None, 0), True),
    "l1_hidden_states_diff_threshold": (None, (0.0,), 0.1),
    "important_condition_threshold": (0.0, (None, 0), 0.1),
    "Fn_compute_blocks_ids": ([], (None, ()), [0]),
    "shallow_patch": (False, (None,), True),
    "cfg_diff_compute_separate": (True, (None,), False),
    "type": (None, ("",), "DBPrune"),
}
IGNORED = (
    "max_Fn_compute_blocks",
    "max_Bn_compute_blocks",
    "alter_residual_diff_threshold",
    "num_inference_steps",
    "do_separate_cfg",
    "cfg_compute_first",
)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_that_is_not_there_may_be_off_but_not_on(name: str):
    neutral, also_off, on = SWITCHES[name]
    for value in (neutral, *also_off):
        assert translated({name: value, "warmup_steps": 3}) == {"warmup_steps": 3}
    with pytest.raises(ValueError, match=rf"^{name}=.* is not supported: .*; leave it at ") as caught:
        translated({name: on})
    assert repr(on) in str(caught.value)
    assert str(caught.value).endswith(f"leave it at {neutral!r}")


@pytest.mark.parametrize("name", IGNORED)
@pytest.mark.parametrize("value", [None, 0, True, 16])
def test_what_only_bounded_or_tuned_others_is_dropped(name: str, value: Any):
    assert translated({name: value}) == {}


def test_names_that_nobody_knows_stay_for_the_error_that_names_them():
    assert translated({"warmup": 2, "taylor_order": 1}) == {"warmup": 2, "taylor_order": 1}


def test_only_minus_one_is_no_warm_up():
    assert translated({"warmup_steps": -1}) == {"warmup_steps": 0}
    assert translated({"warmup_steps": -2}) == {"warmup_steps": -2}, "for the error of its range"
    assert translated({"warmup_steps": None}) == {"warmup_steps": None}


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ({}, None),
        ({"enable_taylorseer": False, "taylorseer_kwargs": {"n_derivatives": 7}}, None),
        ({"enable_taylorseer": True}, 2),
        ({"enable_taylorseer": True, "taylorseer_kwargs": None, "taylorseer_cache_type": None}, 2),
        ({"enable_taylorseer": True, "taylorseer_cache_type": "residual"}, 2),
        ({"enable_taylorseer": True, "taylorseer_kwargs": {"n_derivatives": 0}}, 0),
        *(
            ({"enable_taylorseer": True, "taylorseer_kwargs": {"n_derivatives": 1, name: 3}}, 1)
            for name in ("warmup_steps", "max_warmup_steps", "skip_interval_steps")
        ),
    ],
)
def test_the_order_that_the_taylorseer_switches_ask_for(given: dict[str, Any], order: int | None):
    before = {name: dict(value) if isinstance(value, dict) else value for name, value in given.items()}
    assert translated(given) == ({} if order is None else {"taylor_order": order})
    assert given == before, "a dict of the caller's is left as it is"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"taylor_order": 1}, "n_derivatives=2 contradicts taylor_order=1"),
        ({"taylorseer_cache_type": "hidden_states"}, "taylorseer_cache_type='hidden_states' is not supported"),
        ({"taylorseer_kwargs": {"n_derivatives": 3}}, "n_derivatives=3 is not supported"),
        ({"taylorseer_kwargs": {"n_derivatives": -1}}, "n_derivatives=-1 is not supported"),
        ({"taylorseer_kwargs": {"order": 1}}, "taylorseer_kwargs has no 'order'"),
        ({"enable_taylorseer": False, "enable_encoder_taylorseer": True}, "enable_encoder_taylorseer=True without"),
    ],
)
def test_what_the_taylorseer_switches_cannot_say(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        translated({"enable_taylorseer": True, **given})


DB = {"residual_diff_threshold": 0.05, "warmup_steps": 0, "max_cached_steps": -1}
LEFT_OUT = {
    CacheType.NONE: {},
    CacheType.FBCache: DB,
    CacheType.DBCache: DB | {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0},
    CacheType.DBPrune: {"residual_diff_threshold": 0.05, "warmup_steps": 0, "max_pruned_steps": -1},
    # Nobody has published options of these.
    CacheType.ForecastCache: {},
    CacheType.BudgetCache: {},
    CacheType.ScheduleCache: {},
}


@pytest.mark.parametrize("method", CacheType)
def test_what_is_left_out_is_as_published_and_what_is_given_stays(method: CacheType):
    assert with_published_defaults({}, method) == LEFT_OUT[method]
    given = {"residual_diff_threshold": 0.3, "warmup_steps": 5, "other": 1}
    assert with_published_defaults(given, method) == LEFT_OUT[method] | given


@pytest.mark.parametrize(
    ("given", "bn"),
    [
        ({"Bn_compute_blocks_ids": [0, 3]}, 4),
        ({"Bn_compute_blocks_ids": []}, 0),
        ({"Bn_compute_blocks_ids": [0, 3], "Bn_compute_blocks": 2}, 2),  # for the error that names block 3
    ],
)
def test_as_many_bn_blocks_as_their_ids_reach(given: dict[str, Any], bn: int):
    assert with_published_defaults(given, CacheType.DBCache)["Bn_compute_blocks"] == bn


def test_ids_alone_stay_within_the_published_eight():
    filled = with_published_defaults({"Bn_compute_blocks_ids": [0, 3]}, None)
    assert filled["Bn_compute_blocks"] == 8
    assert "cache_type" not in filled


@pytest.mark.parametrize("method", [None, "fb_cache", CacheType.DBPrune])
def test_the_entry_hands_everything_on(method: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    handed: list[Any] = []
    monkeypatch.setattr(cached_pipe, "apply_cache_on_pipe", lambda *args, **kwargs: handed.append((args, kwargs)) or 7)
    group = object()
    assert apply_cache_on_pipe("pipe", method, warmup_steps=3, group=group) == 7
    (args, kwargs) = handed.pop()
    expected = CacheType.DBCache if method is None else CacheType(method)
    assert args == ("pipe", expected)
    assert kwargs.pop("group") is group
    assert kwargs == with_published_defaults({"warmup_steps": 3}, None if method is None else expected)
    assert ("no cache_type given" in caplog.text) == (method is None)
