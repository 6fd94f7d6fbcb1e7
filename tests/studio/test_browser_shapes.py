"""A source that changes its own shape while it runs: a window that is resized, a phone that is turned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect
from support.browser_tab import Gateway, Tab

pytestmark = pytest.mark.integration

Open = Callable[..., Tab]
WINDOW = """() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 360 });
  const brush = canvas.getContext("2d");
  let hue = 0;
  const paint = () => {
    brush.fillStyle = `hsl(${(hue += 3)} 80% 50%)`;
    brush.fillRect(0, 0, canvas.width, canvas.height);
  };
  let timer = setInterval(paint, 50);
  paint();
  navigator.mediaDevices.getDisplayMedia = async () => canvas.captureStream();
  window.resizeTheWindow = (width, height, isStill) => {
    Object.assign(canvas, { width, height });
    paint();
    clearInterval(timer);
    if (!isStill) timer = setInterval(paint, 50);
  };
}"""
"""A window that is shared; `isStill`: after the change nothing moves in it."""


def test_every_tile_takes_the_shape_that_its_source_takes(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    page = studio.page
    page.evaluate(WINDOW)
    studio.start("A window or a tab")
    page.get_by_role("button", name="Add a look").click()
    expect(page.locator(".tile")).to_have_count(2)
    page.get_by_role("button", name="neon", exact=True).click()
    studio.until(lambda: gateway.fake.painted[-1][2] == "neon lights", "the look")
    wide = gateway.fake.sizes_asked
    assert len(wide) == 2
    assert wide[0][0] > wide[0][1]
    for width in (500, 400, 300, 360):
        page.evaluate("width => resizeTheWindow(width, 640)", width)
    studio.until(lambda: len(gateway.fake.sizes_asked) == 4, "another size in both sessions")
    tall = gateway.fake.sizes_asked[2:]
    assert tall[0] == tall[1] == wide[0][::-1]
    assert [one["type"] for one in gateway.fake.asked].count("open") == 2
    (wall,) = gateway.fake.walls.values()
    looks = [tile.settings["prompt"] for _, tile in sorted(wall.tiles.items())]
    assert looks[0] != looks[1] == "neon lights"
    before = len(gateway.fake.painted)
    studio.until(lambda: len(gateway.fake.painted) > before + 20, "pictures")
    assert gateway.fake.misfits == []
    assert len(gateway.fake.walls) == 1
    expect(page.locator(".figures dd").last).to_have_text(f"{tall[0][0]} × {tall[0][1]}")
    studio.is_live()
    page.wait_for_timeout(1500)
    assert len(gateway.fake.sizes_asked) == 4, "once for each shape that stays"


def test_a_window_that_stands_still_in_its_new_shape_is_painted_in_it(
    open_studio: Open, gateway: Gateway
) -> None:
    studio = open_studio(gateway.url)
    studio.page.evaluate(WINDOW)
    studio.start("A window or a tab")
    studio.page.evaluate("resizeTheWindow(360, 640, true)")
    studio.until(lambda: len(gateway.fake.sizes_asked) == 2, "another size")
    (wall,) = gateway.fake.walls.values()
    studio.until(lambda: 0 in wall.tiles and wall.tiles[0].answered > 0, "a picture")
    assert wall.tiles[0].size == gateway.fake.sizes_asked[1]
    assert gateway.fake.misfits == []


def test_a_tile_that_may_not_take_another_shape_holds_all_of_them_at_theirs(
    open_studio: Open, gateway: Gateway
) -> None:
    studio = open_studio(gateway.url)
    page = studio.page
    page.evaluate(WINDOW)
    studio.start("A window or a tab")
    page.get_by_role("button", name="Add a look").click()
    expect(page.locator(".tile")).to_have_count(2)
    studio.until(lambda: {one[0] for one in gateway.fake.painted} == {0, 1}, "pictures of both")
    gateway.fake.keeps_size = 0
    before, said = len(gateway.fake.sizes_asked), len(gateway.fake.asked)
    wide = gateway.fake.sizes_asked[-1]
    page.evaluate("resizeTheWindow(360, 640)")
    studio.until(
        lambda: len(gateway.fake.sizes_asked) == before + 3, "the former size of the one that changed"
    )
    assert gateway.fake.sizes_asked[before:] == [wide[::-1], wide[::-1], wide]
    (wall,) = gateway.fake.walls.values()
    studio.until(lambda: {tile.size for tile in wall.tiles.values()} == {wide}, "one size")
    first = wall.next_frame
    studio.until(lambda: wall.next_frame > first + 10, "frames")
    assert [frame for _, frame in gateway.fake.misfits if frame > first + 2] == []
    assert "open" not in [one["type"] for one in gateway.fake.asked[said:]]
