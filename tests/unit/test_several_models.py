"""Settings of several models in one service: what an entry has, what it is called, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cache_core.options import DBCacheOptions, FBCacheOptions
from raycache.model_names import ModelNames, deployment_name, wrong_names
from raycache.settings import AppSettings, ServiceSettings

ONE, OTHER = {"model": {"name": "one", "path": "demo"}}, {"model": {"name": "other/two", "path": "noise"}}


def service(**fields: Any) -> ServiceSettings:
    return ServiceSettings.model_validate({"models": [ONE, OTHER], **fields})


def refused(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        service(**fields)
    return str(caught.value)


def test_one_model_is_written_as_ever():
    plain = {"model": {"path": "noise"}, "parallel": {"ranks_per_replica": 2}, "logging": {"level": "ERROR"}}
    one = ServiceSettings.model_validate(plain)
    assert one.engines == (AppSettings.model_validate(plain),)
    assert (list(one.names), one.deployment("flux")) == (["flux"], "Engine")
    again = ServiceSettings.model_validate(one.model_dump(mode="json"))
    assert again.engines[0].model_dump() == one.engines[0].model_dump()
    assert AppSettings.model_validate(plain).engines[0].parallel.ranks_per_replica == 2


def test_each_model_has_engines_of_its_own_and_the_rest_from_beside():
    several = service(
        models=[
            {**ONE, "parallel": {"ranks_per_replica": 2}, "limits": {"max_steps": 7}, "cache": {"type": "FBCache"}},
            OTHER,
        ],
        parallel={"device": "cpu", "ranks_per_replica": 8},
        limits={"max_images": 2, "max_steps": 50},
        cache={"type": "DBCache", "Fn_compute_blocks": 3},
        warmup=[{"size": "64x64"}],
        reliability={"max_queued_requests": 5},
        logging={"level": "ERROR"},
    )
    one, other = several.engines
    assert (one.parallel.device, one.parallel.ranks_per_replica) == ("cpu", 2)
    assert (other.parallel.device, other.parallel.ranks_per_replica) == ("cpu", 8)
    assert (one.limits.max_images, one.limits.max_steps, other.limits.max_steps) == (2, 7, 50)
    assert one.cache == FBCacheOptions(), "the options of one method are none of another's"
    assert other.cache == DBCacheOptions(Fn_compute_blocks=3)
    for engine in (one, other):
        assert type(engine) is AppSettings
        assert engine.policy.max_queued_requests == 5
        assert engine.logging.level == "ERROR"
        assert len(engine.warmup) == 1
    assert [several.deployment(name) for name in several.names] == ["Engine-one", "Engine-other-two"]


@pytest.mark.parametrize(
    ("beside", "own", "kept", "scaled"),
    [
        ({"num_replicas": 3}, {}, 3, None),
        ({"num_replicas": 3}, {"num_replicas": 2}, 2, None),
        ({"num_replicas": 3}, {"autoscaling": {"min_replicas": 0, "max_replicas": 4}}, 0, 4),
        ({"autoscaling": {"min_replicas": 2, "max_replicas": 3}}, {}, 2, 3),
        ({"autoscaling": {"min_replicas": 2, "max_replicas": 3}}, {"autoscaling": {"max_replicas": 9}}, 2, 9),
        ({"autoscaling": {"min_replicas": 2, "max_replicas": 3}}, {"num_replicas": 1}, 1, None),
        ({"autoscaling": {"min_replicas": 2, "max_replicas": 3}}, {"autoscaling": None}, 1, None),
    ],
)
def test_the_number_of_engines_is_said_in_one_way(beside: Any, own: Any, kept: int, scaled: int | None):
    engine = service(models=[{**ONE, **own}], **beside).engines[0]
    assert engine.engines_kept == kept
    assert (engine.autoscaling and engine.autoscaling.max_replicas) == scaled


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": {"path": "demo"}}, "`model` and `models` exclude each other"),
        ({"models": None}, "`model` is required"),
        ({"models": []}, "models\n.*at least 1"),
        ({"models": [{"path": "demo"}]}, "models.0.model\n.*required"),
        ({"models": ["demo"]}, "models.0\n"),
        ({"models": [{**ONE, "parallel": {"ranks": 2}}]}, "models.0.parallel.ranks"),
        ({"models": [{**ONE, "ingress": {}}]}, "models.0.ingress"),
        (
            {"models": [{**ONE, "num_replicas": 1, "autoscaling": {"max_replicas": 2}}]},
            "models.0\n.*exclude",
        ),
        ({"models": [ONE, OTHER, ONE]}, "entries 1 and 3 share the name 'one'"),
        (
            {"models": [{"model": {"path": "demo"}}, {"model": {"path": "noise"}}]},
            "entries 1 and 2 share .*'flux'",
        ),
        ({"models": [OTHER, {"model": {"name": "other-two", "path": "demo"}}]}, "'Engine-other-two' in Serve; rename"),
        ({"models": [{"model": {"name": " ", "path": "demo"}}]}, "models.0.model.name\n.*at least 1"),
        (
            {"aliases": {"gpt-image-1": "dall-e"}},
            "aliases.gpt-image-1: must name a model: 'one', 'other/two'",
        ),
        ({"aliases": {"a": "b", "b": "one"}}, r"aliases.a: must name a model \('b' is an alias itself\)"),
        ({"aliases": {"one": "other/two"}}, "aliases.one: a model has this name"),
        ({"aliases": {"": "one"}}, "an alias is empty"),
        ({"default_model": "three"}, "default_model: must name a model: 'one', 'other/two'; got 'three'"),
        ({"aliases": {"a": "one"}, "default_model": "a"}, "default_model: must name a model instead of the alias of"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_not_clear_is_refused_by_name(fields: dict[str, Any], words: str):
    told = refused(**fields)
    assert re.search(words, told), told


def test_a_service_of_one_model_has_aliases_too():
    settings = AppSettings.model_validate({"model": {"path": "demo"}, "aliases": {"gpt-image-1": "flux"}})
    assert settings.names.find("gpt-image-1") == settings.names.find(None) == "flux"
    with pytest.raises(ValidationError, match=r"aliases\.x: must name a model"):
        AppSettings.model_validate({"model": {"path": "demo"}, "aliases": {"x": "demo"}})


def test_a_request_that_names_none_gets_the_first_or_the_one_that_is_said():
    assert service().names.find(None) == "one"
    assert service(default_model="other/two").names.find(None) == "other/two"


NAMES = st.text("ab/-.", min_size=1, max_size=3)


@given(
    names=st.lists(NAMES, min_size=1, max_size=4, unique_by=deployment_name),
    aliases=st.dictionaries(NAMES, NAMES, max_size=4),
    default=st.none() | NAMES,
    asked=st.none() | NAMES,
)
def test_names_that_pass_lead_to_one_model_each(
    names: list[str], aliases: dict[str, str], default: str | None, asked: str | None
):
    """What is accepted has one meaning, and only what is known is found."""
    if wrong := list(wrong_names(names, aliases, default)):
        unclear = [
            *(alias for alias, model in aliases.items() if alias in names or model not in names),
            *([default] if default not in (None, *names) else []),
        ]
        assert unclear, wrong
        assert all(any(name in reason for reason in wrong) for name in unclear)
        return
    known = ModelNames(names, aliases, default or names[0])
    found = known.find(asked)
    assert found in (*names, None)
    assert (found is not None) == (asked is None or asked in list(known))
    assert [known.find(name) for name in names] == names, "no alias hides a model"
    assert {known.find(alias) for alias in aliases} <= set(names)
    assert {alias for name in names for alias in known.aliases_of(name)} == set(aliases)


@given(st.text(min_size=1, max_size=20))
def test_any_name_makes_a_name_that_serve_and_file_systems_take(name: str):
    made = deployment_name(name)
    assert made.startswith("Engine-")
    assert made.isascii()
    assert not set(made) & set("#/\\ :*?\n\0")
