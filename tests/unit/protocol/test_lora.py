"""Which LoRA a request gets: one of the list, at its scale, or 400 that says what there is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from raycache.engine.convert import job_of, request_error
from raycache.gang.costs import Costs
from raycache.gang.joining import may_join
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError, from_validation_error
from raycache.protocol.job_errors import JobFailed, LoraNotLoaded
from raycache.protocol.lora import LoraChoice
from raycache.protocol.resolve import resolve
from raycache.protocol.schemas import GenerationRequest, ResolvedRequest
from raycache.settings import AppSettings, ModelSettings

MODEL = Capabilities("folder", 57, 4, 64, "FluxPipeline", 16, loras=(LoraChoice("Ink.v2", 0.8), LoraChoice("clay")))
POLICY = AppSettings.model_validate({"model": {"path": "noise"}}).policy


def ask(lora: Any, model: Capabilities = MODEL) -> ResolvedRequest:
    request = GenerationRequest.model_validate({"prompt": "a circle", "lora": lora})
    return resolve(request, POLICY, model, model_name="flux", ranks=1)


@pytest.mark.parametrize(
    ("lora", "choice"),
    [
        (None, None),
        ("clay", LoraChoice("clay", 1.0)),
        ("Ink.v2", LoraChoice("Ink.v2", 0.8)),
        ({"name": "Ink.v2"}, LoraChoice("Ink.v2", 0.8)),
        ({"name": "Ink.v2", "scale": -2}, LoraChoice("Ink.v2", -2.0)),
        ({"name": "clay", "scale": 0}, None),
    ],
)
def test_a_name_gets_its_lora_and_job(lora: Any, choice: LoraChoice | None):
    order = ask(lora)
    assert order.lora == choice
    job, work = job_of(order, "1", "", watch=False)
    assert job.lora == work.lora == choice


@pytest.mark.parametrize("name", ["ink.v2", "../../etc/passwd", "owner/lora", "x" * 5000])
def test_an_unknown_name_is_told_what_there_is(name: str):
    with pytest.raises(RequestError) as caught:
        ask(name)
    error = caught.value
    assert (error.status, error.param, error.code) == (400, "lora.name", "lora_not_found")
    assert "Ink.v2, clay" in error.message
    assert len(error.message) < 300


def test_where_there_are_none_it_says_so():
    with pytest.raises(RequestError, match="it has none"):
        ask("clay", replace(MODEL, loras=()))


@pytest.mark.parametrize(
    ("lora", "param"),
    [
        ({"name": "clay", "scale": float("nan")}, "lora.scale"),
        ({"name": "clay", "scale": 11}, "lora.scale"),
        ({"name": "clay", "path": "/x"}, "lora.path"),
        ({"scale": 1}, "lora.name"),
        (["clay", "Ink.v2"], "lora"),
        ("", "lora.name"),
    ],
)
def test_what_is_wrong_by_itself_is_named(lora: Any, param: str):
    with pytest.raises(ValidationError) as caught:
        GenerationRequest.model_validate({"prompt": "a", "lora": lora})
    assert from_validation_error(caught.value).param == param


def test_jobs_join_with_the_same_lora_and_scale_only():
    costs = Costs()
    states = [
        costs.job_state(str(k), job_of(ask(lora), str(k), "", watch=False)[1], arrived=0, deadline=9, caller="")
        for k, lora in enumerate([None, "clay", "clay", {"name": "clay", "scale": 0.5}, "Ink.v2"])
    ]
    assert [(one.id, other.id) for one in states for other in states if one.id < other.id and may_join(one, other)] == [
        ("1", "2")
    ]


def test_a_client_is_told_that_it_was_the_lora_and_no_path():
    error = request_error(LoraNotLoaded("rank 1: /secret/place is cut off"))
    assert (error.status, error.param, error.code) == (500, "lora", "lora_not_loaded")
    assert "/secret" not in error.message
    assert request_error(JobFailed("other")).code == "job_failed"


@pytest.mark.parametrize(
    "loras", [{"a b": {"path": "x"}}, {"": {"path": "x"}}, {"a/b": {"path": "x"}}, {"a": {}}, {"a": {"path": ""}}]
)
def test_names_and_paths_of_the_settings_are_checked(loras: Any):
    with pytest.raises(ValidationError, match="loras"):
        ModelSettings.model_validate({"path": "noise", "loras": loras})
