"""README's screenshot of the page at ``/``: a real service, a real image, and the exact one next to it on the slider.

    python -m benchmarks.playground_screenshot [--url URL] [--doc | --out page.png] [--dark] [--width 360]

Starts ``serve_configs/laptop_dbcache.yaml`` unless ``--url`` names a service; needs Chromium on PATH.
README shows the light, wide screenshot.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import httpx
import typer
from playwright.sync_api import Page, expect, sync_playwright

from benchmarks.places import doc_option, place
from benchmarks.serving import PATH, application, settings_of

_ROOT = Path(__file__).parents[1]
_CONFIG = _ROOT / "serve_configs" / "laptop_dbcache.yaml"
#: Milliseconds within which an image must appear.
_PATIENCE_MS = 180_000


def main(
    url: Annotated[str | None, typer.Option(help="A running service; default: start one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the screenshot into this file.")] = None,
    doc: bool = doc_option(),
    dark: Annotated[bool, typer.Option(help="Use dark mode.")] = False,
    width: Annotated[int, typer.Option(help="Width of the window in pixels; below 600 as on a phone.")] = 1180,
    prompt: Annotated[str, typer.Option(help="What to generate.")] = "a red circle left of a blue square",
    seed: Annotated[int, typer.Option(help="Seed of the image.")] = 7,
    method: Annotated[str | None, typer.Option(help="A method with its defaults instead of the preset `fast`.")] = None,
) -> None:
    """Take the screenshot."""
    browser = shutil.which("chromium")
    if browser is None:
        raise typer.BadParameter("no `chromium` on PATH, which takes the screenshot; install it")
    out = out or place("images/playground.png", doc)
    with contextlib.ExitStack() as stack:
        url = url or stack.enter_context(application(settings_of(_CONFIG, tiny=False)))
        page = stack.enter_context(_page(browser, "dark" if dark else "light", width))
        page.goto(f"{url}/")
        _compare(page, prompt, seed, method)
        _jobs_of_others(page, url)
        page.screenshot(path=out, full_page=True)
    print(f"{out}: {out.stat().st_size} bytes")


@contextlib.contextmanager
def _page(browser: str, scheme: Literal["light", "dark"], width: int) -> Iterator[Page]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        phone = width < 600
        context = launched.new_context(
            viewport={"width": width, "height": 860 if phone else 1150},
            color_scheme=scheme,
            is_mobile=phone,
            has_touch=phone,
        )
        page = context.new_page()
        page.set_default_timeout(_PATIENCE_MS)
        yield page
        launched.close()


def _compare(page: Page, prompt: str, seed: int, method: str | None) -> None:
    """Generate, compare with the exact image, and wait until the page is still."""
    page.get_by_role("radio", name="Custom" if method else "Fast", exact=True).check()
    if method:
        page.get_by_label("Method").select_option(method)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("spinbutton", name="Seed").fill(str(seed))
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("button", name="Compare with exact").click()
    expect(page.get_by_role("slider")).to_be_visible(timeout=_PATIENCE_MS)
    page.get_by_role("group", name="Steps").get_by_role("button").nth(19).hover()
    page.evaluate("document.activeElement.blur()")


def _jobs_of_others(page: Page, url: str) -> None:
    """Keep the gang busy with jobs of two sizes, and wait until the page shows one; the first may be over by then."""
    bars = page.locator("#gang").get_by_role("progressbar")
    expect(bars).to_have_count(0, timeout=_PATIENCE_MS)
    for size, steps in (("256x256", 90), ("384x256", 90)):
        body = {"prompt": "a green star", "size": size, "num_inference_steps": steps, "quality": "exact"}
        asked = {"url": f"{url}{PATH}", "json": body, "timeout": 300}
        threading.Thread(target=httpx.post, kwargs=asked, daemon=True).start()
    expect(bars.first).to_be_visible(timeout=_PATIENCE_MS)


if __name__ == "__main__":
    typer.run(main)
