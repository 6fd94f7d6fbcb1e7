"""The studio in a browser's tab, as someone at the screen sees and uses it; and the gateway behind it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from support.fake_gateway import FakeGateway

__all__ = ["CAMERA_COLOUR", "CLIP_COLOUR", "WITHIN_MS", "Gateway", "Tab"]

CAMERA_COLOUR = (200, 40, 40)
CLIP_COLOUR = (40, 60, 210)
WITHIN_MS = 45_000
"""Load on the machine, not the page, sets this."""


@dataclass
class Gateway:
    """The fake one, and the loop of its thread."""

    fake: FakeGateway
    url: str
    loop: asyncio.AbstractEventLoop

    def run(self, work: Any) -> Any:
        """A coroutine in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)


@dataclass
class Tab:
    """A tab with the studio in it, as someone at the screen sees and uses it."""

    page: Page
    hosts: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    @classmethod
    def watching(cls, page: Page) -> Self:
        """A tab of which requests and faults are noted."""
        tab = cls(page)
        page.set_default_timeout(WITHIN_MS)
        page.context.on("request", lambda request: tab.note(request.url))
        page.on("pageerror", lambda error: tab.errors.append(str(error.stack or error)))
        page.on("console", lambda said: tab.hear(said.text))
        return tab

    def note(self, url: str) -> None:
        if url.startswith(("http", "ws")):
            self.hosts.add(url.split("/")[2])

    def hear(self, said: str) -> None:
        if "Content Security" in said:
            self.errors.append(said)

    def start(self, source: str = "Camera") -> None:
        """Choose a source and wait for the first picture."""
        self.page.get_by_role("button", name=source, exact=False).first.click()
        self.is_live()

    def is_live(self) -> None:
        expect(self.page.locator(".pill")).to_have_text("Live", timeout=WITHIN_MS)
        self.until(lambda: self.frame > 0, "a picture")

    @property
    def frame(self) -> int:
        """The index of the frame that is shown; 0 if there is none."""
        shown = self.page.locator(".figures dd")
        text = shown.first.inner_text() if shown.count() else ""
        return int("".join(one for one in text if one.isdigit()) or 0)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(WITHIN_MS // 100):
            if condition():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"not within {WITHIN_MS} ms: {what}")

    def panel(self, name: str) -> Locator:
        self.page.get_by_role("tab", name=name).click()
        return self.page.get_by_role("tabpanel")

    def note_states(self) -> None:
        """Note from now on all that the stage says of itself, however short it stands there: see `states`."""
        self.page.evaluate(
            """() => {
                window.states = [];
                const note = () => {
                    const said = document.querySelector(".state")?.textContent ?? "";
                    if (said !== window.states.at(-1)) window.states.push(said);
                };
                new MutationObserver(note).observe(
                    document.body, { childList: true, subtree: true, characterData: true });
            }"""
        )

    @property
    def states(self) -> list[str]:
        """In order; empty where it said nothing."""
        return list(self.page.evaluate("window.states"))

    def look(self, name: str) -> None:
        self.page.locator(".under label").filter(has_text=name).click()

    def colour(self, left: float, right: float) -> np.ndarray:
        """The mean colour (R, G, B) of the stage between two shares of the picture's width, in its middle."""
        box = self.page.locator(".stage > canvas").bounding_box()
        assert box is not None
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        pixels = np.asarray(picture, np.float32)
        # A picture of 4:3 stands whole in the middle of the stage.
        width = min(box["width"], box["height"] * 4 / 3)
        x = box["x"] + (box["width"] - width) / 2
        rows = slice(int(box["y"] + 0.62 * box["height"]), int(box["y"] + 0.7 * box["height"]))
        return pixels[rows, int(x + left * width) : int(x + right * width)].mean((0, 1))
