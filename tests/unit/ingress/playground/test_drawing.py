"""The page in a real browser: an image from its prompt to the comparison, and what is shown meanwhile."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from playwright.sync_api import expect

from tests.helpers.browser import ask, choose

pytestmark = pytest.mark.slow


def test_a_prompt_becomes_previews_and_an_image(visit, service):
    page = visit()
    seen = page.evaluate_handle(
        """() => { const seen = [], image = document.getElementById("image");
        new MutationObserver(() => seen.push([image.alt, image.src.slice(0, 4)])).observe(image, {attributes: true});
        return seen; }"""
    )
    ask(page, "a hill")
    drawn = page.get_by_role("img", name="a hill")
    expect(drawn).to_be_visible()
    assert ["Preview of the image", "data"] in seen.json_value()
    assert drawn.evaluate("image => image.naturalWidth") == 64
    (request,) = service.requests
    assert (request.size, request.num_inference_steps, request.quality, request.seed) == ("64x64", 8, "auto", None)
    facts = page.locator("#facts")
    for told in ("1.7 s", "25 %", "1234"):
        expect(facts).to_contain_text(told)
    expect(page.get_by_role("status")).to_contain_text("25 % of the blocks were left out")


def test_what_is_asked_for_is_sent(visit, service):
    page = visit()
    choose(page, "Custom")
    page.get_by_label("Method").select_option("FBCache")
    page.get_by_label("residual diff threshold").fill("0.2")
    for name, value in (("Width", "32"), ("Height", "48"), ("Steps", "5"), ("Seed", "77")):
        page.get_by_role("spinbutton", name=name, exact=True).fill(value)
    ask(page, "a zebra")
    expect(page.get_by_role("list", name="Warnings")).to_contain_text("`zebra`")
    (request,) = service.requests
    assert (request.size, request.num_inference_steps, request.seed) == ("32x48", 5, 77)
    assert (request.cache.type, request.cache.residual_diff_threshold) == ("FBCache", 0.2)


def test_exact_and_fast_are_compared_under_a_slider(visit, service):
    page = visit()
    choose(page, "Fast")
    ask(page, "a hill")
    page.get_by_role("button", name="Compare with exact").click()
    slider = page.get_by_role("slider", name="exact")
    expect(slider).to_be_focused()
    assert [(one.quality, one.seed) for one in service.requests] == [("fast", None), ("exact", 1234)]
    image = page.get_by_role("img", name="fast: a hill")
    expect(image).to_have_css("clip-path", "inset(0px 0px 0px 50%)")
    page.keyboard.press("ArrowLeft")
    expect(image).to_have_css("clip-path", "inset(0px 0px 0px 49%)")
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 9)
    assert float(image.evaluate("image => image.style.clipPath.match(/[0-9]+(?=%)/)[0]")) > 80
    expect(page.locator("#facts")).to_contain_text("Saved2.5 s, 63 %")  # 4.0 - 1.5: measured, no longer reckoned
    expect(page.locator("#facts")).to_contain_text("dB")


def test_an_exact_image_is_compared_with_the_fast_one(visit, service):
    page = visit()
    choose(page, "Exact")
    ask(page, "a hill")
    page.get_by_role("button", name="Compare with fast").click()
    expect(page.get_by_role("slider")).to_be_visible()
    assert [one.quality for one in service.requests] == ["exact", "fast"]
    expect(page.get_by_role("group", name="Steps").get_by_role("button").nth(2)).to_have_class("step reused")


def test_the_strip_tells_each_steps_difference_and_threshold(visit):
    page = visit()
    ask(page, "a hill")
    strip = page.get_by_role("group", name="Steps")
    third = strip.get_by_role("button", name="Step 3 of 8: reused; difference 0.0500, below the threshold 0.12")
    expect(third).to_have_class("step reused")
    third.hover()
    expect(page.locator("#readout")).to_contain_text("below the threshold 0.12")
    strip.get_by_role("button").first.focus()
    page.keyboard.press("End")
    expect(page.locator("#readout")).to_have_text(
        "Step 8 of 8: computed; difference 0.200, not below the threshold 0.12"
    )
    expect(strip.get_by_role("button").first).to_have_attribute("aria-label", re.compile("one of the first"))


def test_dbprune_gets_a_map_of_blocks_and_steps(visit):
    page = visit()
    choose(page, "Custom")
    page.get_by_label("Method").select_option("DBPrune")
    ask(page, "a hill")
    cells = page.get_by_role("img", name="12 of 96 left out")
    expect(cells).to_be_visible()
    assert cells.locator("rect").count() == 12
    box = cells.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 2.5 / 8, box["y"] + box["height"] * 4.5 / 12)
    expect(page.locator("#readout")).to_have_text("Step 3, block 4: left out")
    step = page.get_by_role("group", name="Steps").get_by_role("button").nth(2)
    expect(step).to_have_attribute("aria-label", "Step 3 of 8: 4 of 12 blocks left out: 3 to 5, 7")


def test_the_place_in_the_queue_and_an_abort(visit, service):
    page = visit()
    ask(page, "wait")
    expect(page.locator("#progress-text")).to_have_text("In the queue: 2 jobs ahead, about 41 s left")
    abort = page.get_by_role("button", name="Abort")
    expect(abort).to_be_focused()
    abort.click()
    expect(page.locator("#empty")).to_contain_text("Aborted")
    expect(page.get_by_role("button", name="Draw", exact=True)).to_be_focused()
    for _ in range(200):
        if service.closed:
            break
        page.wait_for_timeout(10)
    assert service.closed, "the service heard that nobody waits any more"
    ask(page, "a hill")
    expect(page.get_by_role("img", name="a hill")).to_be_visible()


def test_what_the_gang_is_doing(visit, service):
    page = visit()
    gang = page.get_by_role("region", name="What the gang is doing now")
    expect(gang.get_by_role("progressbar", name=re.compile("2 . 512x512, step 3 of 10"))).to_be_visible()
    expect(gang).to_contain_text("1 job; 2 jobs waiting")
    expect(page.locator("#service")).to_have_text("flux is ready")


def test_a_model_without_previews_and_a_service_that_is_not_ready(visit, service):
    service.capabilities = replace(service.capabilities, previews=False)
    engines, service.engines, service.shortage = service.engines, [], "no node has 4 free GPUs"
    page = visit("503 (Service Unavailable)")
    expect(page.locator("#service")).to_have_text("No engine is ready: no node has 4 free GPUs")
    service.engines = engines
    expect(page.locator("#service")).to_have_text("flux is ready")
    ask(page, "a hill")
    expect(page.get_by_role("img", name="a hill")).to_be_visible()
    assert service.requests[0].partial_images == 0


def test_a_form_that_is_being_filled_in_stays_while_engines_sleep(visit, service):
    service.engines, service.capabilities, service.asleep = [], None, True
    page = visit()
    expect(page.locator("#gang")).to_have_text("All engines sleep; the next request wakes one.")
    page.get_by_label("Width").fill("32")
    exact = page.get_by_role("radio", name="Exact", exact=True)
    exact.check()
    for _ in range(2):
        with page.expect_response("**/v1/models"):
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as when somebody comes back to it
    page.wait_for_timeout(50)
    expect(exact).to_be_focused()
    expect(page.get_by_label("Width")).to_have_value("32")
