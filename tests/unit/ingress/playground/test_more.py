"""The page in a real browser: a negative prompt, its scale, and LoRAs, for models that take them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import Page, expect

from raycache.protocol.errors import invalid
from raycache.protocol.lora import LoraChoice, LoraRequest
from tests.helpers.browser import ask

pytestmark = pytest.mark.slow


@pytest.fixture
def service(service):
    """Its model takes all of them."""
    loras = (LoraChoice("ink", 0.8), LoraChoice("oil"))
    service.capabilities = replace(service.capabilities, negative_prompt=True, true_cfg=True, loras=loras)
    return service


def opened(page: Page) -> Page:
    page.get_by_text("Negative prompt, LoRA", exact=True).click()
    return page


def test_what_is_written_there_is_sent_with_the_image_and_with_the_one_beside_it(visit, service):
    page = opened(visit())
    page.get_by_label("Negative prompt", exact=True).fill("rain")
    page.get_by_label("True CFG scale").fill("3.5")
    expect(page.get_by_label("LoRA scale")).to_be_hidden()
    page.get_by_label("LoRA", exact=True).select_option("ink")
    expect(page.get_by_label("LoRA scale")).to_have_value("0.8")
    page.get_by_label("LoRA scale").fill("1.2")
    ask(page, "a hill")
    page.get_by_role("button", name="Compare with exact").click()
    expect(page.get_by_role("slider", name="exact")).to_be_focused()
    assert len(service.requests) == 2
    for request in service.requests:
        assert (request.negative_prompt, request.true_cfg_scale) == ("rain", 3.5)
        assert request.lora == LoraRequest(name="ink", scale=1.2)


def test_another_lora_has_its_own_scale_and_none_has_none(visit, service):
    page = opened(visit())
    page.get_by_label("LoRA", exact=True).select_option("ink")
    page.get_by_label("LoRA", exact=True).select_option("oil")
    expect(page.get_by_label("LoRA scale")).to_have_value("1")
    page.get_by_label("LoRA", exact=True).select_option("none")
    expect(page.get_by_label("LoRA scale")).to_be_hidden()
    ask(page, "a hill")
    expect(page.get_by_role("img", name="a hill")).to_be_visible()
    assert service.requests[0].lora is None


def test_a_default_is_shown_and_only_sent_if_it_was_changed(visit, service):
    service.policy = service.policy.changed({"defaults": {"negative_prompt": "fog", "true_cfg_scale": 2.0}})
    page = opened(visit())
    expect(page.get_by_label("Negative prompt", exact=True)).to_have_value("fog")
    expect(page.get_by_label("True CFG scale")).to_have_value("2")
    ask(page, "a hill")
    expect(page.get_by_role("img", name="a hill")).to_be_visible()
    page.get_by_label("Negative prompt", exact=True).fill("")
    ask(page, "a lake")
    expect(page.get_by_role("img", name="a lake")).to_be_visible()
    assert [request.negative_prompt for request in service.requests] == [None, ""]


def test_a_refused_field_is_shown_though_it_was_folded_away(visit, service, monkeypatch):
    async def refused(request):
        raise invalid("true_cfg_scale", "a negative prompt has no effect unless it is above 1", [4])
        yield

    monkeypatch.setattr(service, "generate_stream", refused)
    page = visit("400 (Bad Request)")
    expect(page.get_by_label("True CFG scale")).to_be_hidden()
    ask(page, "a hill")
    expect(page.get_by_label("True CFG scale")).to_be_focused()
    expect(page.get_by_role("alert")).to_contain_text("unless it is above 1")


@pytest.mark.parametrize(
    ("has", "title"),
    [
        ({"negative_prompt": False, "true_cfg": False, "loras": ()}, None),
        ({"true_cfg": False, "loras": ()}, "Negative prompt"),
        ({"negative_prompt": False, "true_cfg": False}, "LoRA"),
    ],
)
def test_a_model_is_asked_for_what_it_takes_only(visit, service, has, title):
    service.capabilities = replace(service.capabilities, **has)
    page = visit()
    ask(page, "a hill")
    expect(page.get_by_role("img", name="a hill")).to_be_visible()
    (request,) = service.requests
    assert (request.negative_prompt, request.true_cfg_scale, request.lora) == (None, None, None)
    summary = page.locator("summary")
    if title is None:
        expect(summary).to_be_hidden()
        return
    expect(summary).to_have_text(title)
    summary.click()
    expect(page.get_by_label("Negative prompt", exact=True)).to_be_visible(visible="Negative" in title)
    expect(page.get_by_label("LoRA", exact=True)).to_be_visible(visible=title == "LoRA")
    expect(page.get_by_label("True CFG scale")).to_be_hidden()
