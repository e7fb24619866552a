"""The page in a real browser: for holders of keys, with a keyboard, on a phone, in the dark, by its names."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from raycache.ingress.api import build_http_app
from raycache.ingress.auth import Key
from tests.helpers.browser import ask, choose, opened
from tests.helpers.scripted_service import served

pytestmark = pytest.mark.slow

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def test_errors_are_told_where_they_belong(visit):
    page = visit("400 (Bad Request)", "429 (Too Many Requests)")
    ask(page, "wrong")
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("no multiple of 16; nearest legal value: 64x64")
    expect(page.get_by_label("Width")).to_be_focused()
    expect(page.get_by_label("Width")).to_have_attribute("aria-invalid", "true")
    ask(page, "full")
    expect(problem).to_contain_text("too many jobs wait. Try again in 7 seconds.")
    expect(page.get_by_label("Width")).not_to_have_attribute("aria-invalid", "true")
    ask(page, "broken")
    expect(problem).to_contain_text("a rank died twice under it")
    ask(page, " ")
    expect(problem).to_contain_text("the prompt is empty")
    ask(page, "a hill")
    expect(problem).to_be_hidden()


def test_a_key_is_asked_for_and_kept_in_memory_only(visit, service):
    service.keys = (Key(b"secret"),)
    page = visit("401 (Unauthorized)")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Key")).to_be_focused()
    dialog.get_by_label("Key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("this key is not valid here")
    dialog.get_by_label("Key").fill("secret")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    ask(page, "a hill")
    expect(page.get_by_role("img", name="a hill")).to_be_visible()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    service.keys = (Key(b"another"),)
    ask(page, "a lake")
    expect(dialog).to_contain_text("this key is not valid here")
    dialog.get_by_label("Key").fill("another")
    page.keyboard.press("Enter")
    expect(page.get_by_role("img", name="a lake")).to_be_visible()  # drawn without being asked for again
    page.reload()
    expect(dialog).to_be_visible()


def test_a_keyboard_is_enough(visit, service):
    page = visit()
    page.get_by_role("radio", name="Fast", exact=True).wait_for(state="attached")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the image")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("a hill")
    page.keyboard.press("Tab")
    for _ in range(3):  # from the default past exact and high
        page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Fast", exact=True)).to_be_checked()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("img", name="a hill")).to_be_visible()
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("wait")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("button", name="Abort")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#empty")).to_contain_text("Aborted")
    assert [(one.prompt, one.quality) for one in service.requests] == [("a hill", "fast"), ("wait", "fast")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_in_dark(visit, scheme):
    page = visit("400 (Bad Request)", color_scheme=scheme)
    ask(page, "a zebra")
    expect(page.locator("#warnings")).to_be_visible()
    ask(page, "wrong")
    expect(page.get_by_role("alert")).to_be_visible()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall("[0-9]+", ground))) < 3 * 128) == (scheme == "dark")
    low = page.evaluate(CONTRASTS)
    assert not low


def test_a_phone_scrolls_down_only(visit, service):
    page = visit(**PHONE)
    choose(page, "Custom")
    ask(page, "a zebra")
    expect(page.locator("#facts")).to_be_visible()
    page.get_by_role("button", name="Compare with exact").click()
    expect(page.get_by_role("slider")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    small = page.evaluate(
        "[...document.querySelectorAll('button:not(.step)')].filter(b => b.offsetHeight && b.offsetHeight < 44).length"
    )
    assert not small, "every button can be met with a finger"


def test_it_works_under_a_prefix(usual, service):
    with served(build_http_app(service), "/images") as url, opened(usual, url) as page:
        assert page.url == f"{url}/"
        ask(page, "a hill")
        expect(page.get_by_role("img", name="a hill")).to_be_visible()


def test_every_field_and_button_has_a_name(visit):
    page = visit()
    choose(page, "Custom")
    page.get_by_label("warmup steps").wait_for()
    unnamed = page.evaluate(
        """[...document.querySelectorAll("input, select, textarea, button")].filter(
            it => !it.labels?.length && !it.ariaLabel && !it.textContent.trim() && !it.closest("[hidden]")
        ).map(it => it.id)"""
    )
    assert unnamed == []


#: Texts whose contrast to what is behind them is below 4.5, as WCAG's AA asks for.
CONTRASTS = """() => {
  const parsed = text => text.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = rgb => rgb.slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = it => { for (; it; it = it.parentElement) {
    const colour = parsed(getComputedStyle(it).backgroundColor); if ((colour[3] ?? 1) === 1) return colour; } };
  const low = [];
  for (const it of document.querySelectorAll("body *")) {
    const own = [...it.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !it.checkVisibility() || it.closest(".sr, .tag, noscript")) continue;
    const [a, b] = [light(parsed(getComputedStyle(it).color)), light(behind(it))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push([it.outerHTML.slice(0, 80), (a + 0.05) / (b + 0.05)]);
  }
  return low;
}"""
