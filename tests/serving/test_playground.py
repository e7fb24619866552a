"""The page at `/` over the service as a user runs it, in a real browser."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.helpers.browser import launched, opened


def test_a_real_image_and_the_exact_one_beside_it(flux: str):
    with launched() as browser, browser.new_context() as context, opened(context, f"{flux}/") as page:
        page.get_by_label("Prompt", exact=True).fill("a hill")
        page.get_by_role("spinbutton", name="Seed").fill("7")
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(page.get_by_role("img", name="a hill")).to_be_visible(timeout=60_000)
        assert page.locator("#image").evaluate("image => image.naturalWidth") == 64
        steps = page.get_by_role("group", name="Steps").get_by_role("button")
        expect(steps).to_have_count(6)
        expect(steps.nth(5)).to_have_attribute(
            "aria-label", re.compile("Step 6 of 6: .*difference .* the threshold 0.12")
        )
        page.get_by_role("button", name="Compare with exact").click()
        expect(page.get_by_role("slider", name="exact")).to_be_focused(timeout=60_000)
        expect(page.locator("#facts")).to_contain_text("PSNR")
        expect(page.get_by_role("region", name="What the gang is doing now")).to_contain_text("Engine 2: idle")
