"""From glass to glass in Chromium: `glass.html` sends its canvas by WHIP, and watches it by WHEP.

It needs playwright and Debian's chromium, as the tests do.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import quote

from loadtest.glass import BITS, CELL, GlassPlan, Seen

__all__ = ["in_chromium"]

PAGE = Path(__file__).with_name("glass.html")
WITHIN_MS = 60_000


async def in_chromium(url: str, plan: GlassPlan) -> Seen:
    """The page, at the studio of this URL, until it has seen so many pictures; a long time is an error."""
    from playwright.async_api import async_playwright

    asked = quote(json.dumps({"side": plan.side, "fps": plan.fps, "bits": BITS, "cell": CELL}))
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = await browser.new_page()
        await page.route(f"{url}glass?*", lambda route: route.fulfill(path=PAGE, content_type="text/html"))
        await page.goto(f"{url}glass?plan={asked}")
        count = f"window.pictures.length >= {plan.warm_up}"
        await page.wait_for_function(count, timeout=WITHIN_MS)
        await page.evaluate("window.pictures = []")
        await page.wait_for_timeout(1000 * (plan.frames - plan.warm_up) / plan.fps)
        pictures = await page.evaluate("window.pictures")
        await browser.close()
    return Seen(plan, latencies_ms=[picture["ms"] for picture in pictures])
