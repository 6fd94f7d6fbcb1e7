"""What goes wrong is said on the page, wherever one looks, and can be read away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect
from support.accessibility import SERIOUS
from support.browser_tab import WITHIN_MS, Gateway, Tab

pytestmark = pytest.mark.integration

Open = Callable[..., Tab]
NOT_HERE = {
    "type": "error",
    "reason": "METHOD_UNSUPPORTED",
    "message": "only on the machine that runs the service",
}
NO_HUB = {"type": "model", "id": "sd-turbo", "state": "failed", "message": "the hub does not answer"}
REFUSED = {"type": "state", "tile": 1, "state": "refused", "reason": "MODEL_UNKNOWN", "message": "it is gone"}
REJECTED = {
    "type": "applied",
    "tile": 0,
    "id": 999,
    "frame": None,
    "settings": None,
    "rejected": {"reason": "CALLS_EXHAUSTED", "message": "32 controls wait"},
    "advice": "",
    "unknown_words": [],
}


def say(gateway: Gateway, message: dict[str, Any]) -> None:
    """To the one page that there is."""
    (wall,) = gateway.fake.walls.values()
    assert wall.socket is not None
    gateway.run(wall.socket.send_json(message))


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_whatever_goes_wrong_is_seen_and_heard_on_every_panel(
    open_studio: Open, gateway: Gateway, axe: str, scheme: str
) -> None:
    studio = open_studio(gateway.url, color_scheme=scheme)
    page = studio.page
    studio.start("Sample clip")
    page.get_by_role("button", name="Add a look").click()
    expect(page.locator(".tile")).to_have_count(2)
    page.locator("body").press("Alt+1")
    studio.panel("Health")
    told = page.get_by_role("region", name="What went wrong")
    expect(told).to_have_count(0)
    for message, words in (
        (NOT_HERE, "Only on the machine"),
        (NO_HUB, "The hub does not answer"),
        (REFUSED, "Tile 2: That model is not here"),
        (REJECTED, "Tile 1: Too much at once"),
    ):
        say(gateway, message)
        expect(told).to_contain_text(words)
        expect(page.get_by_role("alert")).not_to_be_empty()
    page.evaluate(axe)
    assert page.evaluate(SERIOUS) == []
    studio.panel("Look")
    expect(told).not_to_contain_text("Tile 1")
    expect(page.get_by_role("tabpanel")).to_contain_text("32 controls wait")
    told.get_by_role("button", name="Close: This model cannot do that").press("Enter")
    expect(told).not_to_contain_text("Only on the machine")
    say(gateway, {**REFUSED, "state": "live"})
    say(gateway, {**NO_HUB, "state": "fetching"})
    expect(told).to_have_count(0)
    studio.is_live()


def test_a_page_that_gets_no_wall_says_why_until_it_gets_one(open_studio: Open, gateway: Gateway) -> None:
    gateway.fake.full = "the studio has 64 walls"
    studio = open_studio(gateway.url)
    told = studio.page.get_by_role("region", name="What went wrong")
    expect(told).to_contain_text("The studio has 64 walls", timeout=WITHIN_MS)
    gateway.fake.full = None
    expect(told).to_have_count(0, timeout=WITHIN_MS)
    studio.start("Sample clip")
    gateway.fake.full = "the studio has 64 walls"
    gateway.run(gateway.fake.cut_all())
    expect(studio.page.locator(".state")).to_contain_text("The studio has 64 walls", timeout=WITHIN_MS)
    gateway.fake.full = None
    studio.is_live()


def test_a_viewer_that_is_refused_reads_why(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start("Sample clip")
    (wall,) = gateway.fake.walls.values()
    gateway.fake.full = "the wall has as many viewers as it may have"
    viewer = studio.page.context.new_page()
    viewer.goto(f"{gateway.url}/view/{wall.viewer}")
    words = viewer.locator("#words")
    expect(words).to_contain_text("as many viewers as it may have", timeout=WITHIN_MS)
    gateway.fake.full = None
    expect(words).to_be_hidden(timeout=WITHIN_MS)
