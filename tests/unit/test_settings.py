"""Settings refuse what they do not know; the policy changes without a restart."""

import pytest
from pydantic import ValidationError

from cache_core.options import DBCacheOptions, NoCacheOptions
from raycache.settings import AppSettings

SETTINGS = AppSettings.model_validate({"model": {"path": "noise"}})


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(ValidationError, match="ranks"):
        AppSettings.model_validate({"model": {"path": "noise"}, "parallel": {"ranks": 4}})


def test_a_model_must_be_named():
    with pytest.raises(ValidationError, match="`model` is required"):
        AppSettings.model_validate({})


def test_gpus_follow_the_device():
    assert SETTINGS.parallel.gpus_per_rank == 1.0
    assert SETTINGS.parallel.model_copy(update={"device": "cpu"}).gpus_per_rank == 0.0
    assert SETTINGS.parallel.model_copy(update={"device": "cpu", "rank_gpus": 1.0}).gpus_per_rank == 1.0


def test_policy_changes_field_by_field():
    policy = SETTINGS.policy.changed({"defaults": {"num_inference_steps": 4}, "cache": {"type": "none"}})
    assert policy.cache == NoCacheOptions()
    assert policy.defaults.num_inference_steps == 4
    assert str(policy.defaults.size) == "1024x1024"
    assert SETTINGS.policy.cache == DBCacheOptions()


@pytest.mark.parametrize("change", [{"chache": {}}, {"limits": {"max_pixel": 3}}, {"max_queued_seconds": -1}])
def test_a_wrong_policy_is_refused(change):
    with pytest.raises(ValidationError):
        SETTINGS.policy.changed(change)
