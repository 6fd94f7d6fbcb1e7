"""What the web client does with the frames of a source, in Chromium and without a studio."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright
from support.require import skip_or_fail

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

HERE = "http://localhost/"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    found = shutil.which("chromium")
    if found is None:
        skip_or_fail("chromium is missing (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, root: Path) -> Iterator[Page]:
    """A page that may import the client's modules, with `painted`: a stream of a canvas that changes."""
    page = chromium.new_page()

    def served(route: Route) -> None:
        name = route.request.url.removeprefix(HERE)
        if name:
            route.fulfill(path=root / "clients/web/src" / name, content_type="text/javascript")
        else:
            route.fulfill(body="<!doctype html><title>a page</title>", content_type="text/html")

    page.route(f"{HERE}**", served)
    page.goto(HERE)
    page.evaluate(PAINTED)
    yield page
    page.close()


PAINTED = """() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
    const brush = canvas.getContext("2d");
    setInterval(() => {
        brush.fillStyle = `hsl(${(performance.now() / 10) % 360} 80% 50%)`;
        brush.fillRect(0, 0, 64, 64);
    }, 20);
    window.painted = canvas.captureStream();
    window.until = async (isSo) => {
        while (!isSo()) await new Promise(requestAnimationFrame);
    };
}"""

COPIES = """async () => {
    const { Session } = await import("/session.js");
    const { feed } = await import("/source.js");
    const { clone } = VideoFrame.prototype;
    let copies = 0;
    VideoFrame.prototype.clone = function () {
        copies += 1;
        return clone.call(this);
    };
    const { capture } = new Session(painted, {});
    const stop = feed(painted, 30, capture, () => {});
    await until(() => capture.seen > 5);
    stop();
    return copies;
}"""


def test_no_frame_of_a_camera_is_held_twice(page: Page) -> None:
    """A camera has few buffers: a copy of a frame keeps one of them."""
    assert page.evaluate(COPIES) == 0
