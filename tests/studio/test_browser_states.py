"""What the studio says when it is not simply live; and who can use it: by keyboard, by ear, on a phone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect
from support.accessibility import SERIOUS
from support.browser_tab import WITHIN_MS, Gateway, Tab
from support.fake_gateway import READY, FakeGateway, serving

pytestmark = pytest.mark.integration

Open = Callable[..., Tab]
PANELS = ("Look", "Motion", "Presets", "Mixer", "Take", "Health")


def test_a_camera_that_is_not_allowed_says_what_to_do(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url, may_use_camera=False)
    studio.page.get_by_role("button", name="Camera").click()
    expect(studio.page.locator(".trouble")).to_contain_text("The camera was not allowed")
    expect(studio.page.get_by_role("alert")).to_contain_text("address bar")
    studio.start("Sample clip")


def test_plain_http_says_why_there_is_no_camera(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url.replace("127.0.0.1", "studio.test"), may_use_camera=False)
    studio.page.get_by_role("button", name="Camera").click()
    expect(studio.page.locator(".trouble")).to_contain_text("No camera over plain HTTP")
    expect(studio.page.locator(".trouble")).to_contain_text("--lan")
    studio.start("Sample clip")


def test_a_file_that_is_no_video_is_refused(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.page.set_input_files(
        "input[type=file]", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no video"}
    )
    expect(studio.page.locator(".trouble")).to_contain_text("notes.txt")


@pytest.mark.parametrize(
    ("turned", "pill", "says"),
    [
        ({"queue": True}, "In the queue", "Every place is taken"),
        ({"refuse": "TENANT_STREAMS_EXHAUSTED"}, "Refused", "as many streams as you may"),
        ({"refuse": "METHOD_UNSUPPORTED"}, "Refused", "Motion"),
    ],
)
def test_a_session_that_does_not_open_says_why(
    open_studio: Open, gateway: Gateway, turned: dict[str, Any], pill: str, says: str
) -> None:
    for name, value in turned.items():
        setattr(gateway.fake, name, value)
    studio = open_studio(gateway.url)
    studio.page.get_by_role("button", name="Sample clip").click()
    expect(studio.page.locator(".pill")).to_have_text(pill, timeout=WITHIN_MS)
    expect(studio.page.locator(".state")).to_contain_text(says)
    gateway.fake.queue, gateway.fake.refuse = False, None
    if pill == "Refused":
        studio.page.get_by_role("button", name="Try again").click()
        studio.is_live()


def test_lanes_are_named_as_they_are_everywhere(open_studio: Open, gateway: Gateway) -> None:
    gateway.fake.others = 2
    studio = open_studio(gateway.url)
    studio.start("Sample clip")
    lanes = studio.panel("Health").get_by_label("Lanes", exact=True)
    paint = lanes.locator(".lane").nth(1)
    expect(paint.get_by_role("heading")).to_have_text("paint")
    expect(paint.locator(".replica").first).to_contain_text("replica 0")
    expect(paint.locator(".replica").first).to_contain_text("3 sessions, 1 of yours")
    expect(lanes).to_contain_text("kept for a minute")
    paint.get_by_role("button", name="Kill a replica").click()
    expect(studio.page.get_by_role("alert")).to_have_text("A replica of paint is killed")


def test_lanes_of_a_service_from_elsewhere_say_why_there_are_none(
    open_studio: Open, gateway: Gateway
) -> None:
    gateway.fake.local = False
    studio = open_studio(gateway.url)
    studio.start("Sample clip")
    lanes = studio.panel("Health").get_by_label("Lanes", exact=True)
    expect(lanes).to_contain_text("has not started the service")
    expect(lanes.locator(".lane")).to_have_count(0)


def test_models_are_listed_once_and_a_press_is_answered(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start("Sample clip")
    page = studio.page
    page.locator("body").press("m")
    sheet = page.get_by_role("dialog")
    expect(sheet.get_by_role("heading", level=3)).to_have_text(["Pocket", "SD-Turbo"])
    told = {"type": "model", "id": "sd-turbo", "state": "ready"}
    wall = next(iter(gateway.fake.walls.values()))
    assert wall.socket is not None
    gateway.run(wall.socket.send_json(told))
    gateway.fake.delay_s = 1.0
    use = sheet.get_by_role("button", name="Use it: SD-Turbo")
    use.click()
    expect(sheet.get_by_role("status")).to_contain_text("going over to it")
    expect(use).to_be_disabled()
    expect(use).to_be_enabled(timeout=WITHIN_MS)
    gateway.fake.refuse = "NO_CAPACITY"
    use.click()
    expect(sheet).to_contain_text("not now", timeout=WITHIN_MS)
    expect(use).to_be_enabled()


def test_a_viewer_is_told_why_the_picture_stands_still(open_studio: Open) -> None:
    fake = FakeGateway()
    watched = []
    with serving(fake) as (url, loop):
        for _ in range(2):
            studio = open_studio(url)
            studio.start("Sample clip")
            viewer = studio.page.context.new_page()
            viewer.goto(f"{url}/view/{list(fake.walls.values())[-1].viewer}")
            watched.append((studio.page, viewer.locator("#words")))
            expect(viewer.locator("#words")).to_be_hidden(timeout=WITHIN_MS)
        (page, words), (_, others) = watched
        page.close()
        expect(words).to_contain_text("stands still", timeout=WITHIN_MS)
        Gateway(fake, url, loop).run(fake.end(next(iter(fake.walls))))
        expect(words).to_contain_text("This program is over", timeout=WITHIN_MS)
        expect(others).to_be_hidden()
    expect(others).to_contain_text("cannot be reached", timeout=WITHIN_MS)
    expect(words).to_contain_text("This program is over")


def test_the_start_of_the_service_is_waited_for(open_studio: Open, gateway: Gateway) -> None:
    gateway.fake.service = {"state": "starting", "message": "loading the model"}
    studio = open_studio(gateway.url)
    expect(studio.page.locator(".starting")).to_contain_text("loading the model")
    expect(studio.page.locator(".pill")).to_have_text("Starting")
    expect(studio.page.locator(".starting")).to_contain_text("0:03", timeout=WITHIN_MS)
    gateway.fake.service = READY
    studio.start("Sample clip")


def test_a_service_that_nobody_is_behind_is_said_to_be_away_until_it_comes(
    open_studio: Open, gateway: Gateway
) -> None:
    gateway.fake.service = {"state": "unreachable", "message": "no connection to here:1"}
    studio = open_studio(gateway.url)
    expect(studio.page.locator(".trouble")).to_contain_text("Nobody answers")
    expect(studio.page.locator(".trouble")).to_contain_text("here:1")
    expect(studio.page.locator(".pill")).to_have_text("No answer")
    gateway.fake.service = READY
    studio.start("Sample clip")


def test_a_size_that_the_model_refuses_becomes_its_own(open_studio: Open, gateway: Gateway) -> None:
    gateway.fake.refuse = "RESOLUTION_UNSUPPORTED"
    studio = open_studio(gateway.url)
    studio.page.get_by_role("button", name="Camera").click()
    studio.until(lambda: len(gateway.fake.asked) >= 2, "another size")
    first, second = [one["options"] for one in gateway.fake.asked if one["type"] == "open"][:2]
    assert first["width"] > first["height"]
    assert (second["width"], second["height"]) == (256, 256)
    assert second["settings"] == first["settings"]


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_nothing_serious_is_found_by_axe(open_studio: Open, gateway: Gateway, axe: str, scheme: str) -> None:
    studio = open_studio(gateway.url, color_scheme=scheme)
    page = studio.page
    page.evaluate(axe)
    assert page.evaluate(SERIOUS) == []
    studio.start("Sample clip")
    page.get_by_role("button", name="Add a look").click()
    page.locator("#prompt").fill("a dragon in oil painting")
    for panel in PANELS:
        studio.panel(panel)
        page.wait_for_timeout(300)
        assert page.evaluate(SERIOUS) == [], panel
    for key in ("?", "m"):
        page.locator("body").press(key)
        expect(page.get_by_role("dialog")).to_be_visible()
        assert page.evaluate(SERIOUS) == [], key
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)  # it hears no other key until it is gone
    studio.look("Wall")
    assert page.evaluate(SERIOUS) == []


def test_everything_is_reached_from_the_keyboard(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    page = studio.page
    expect(page.get_by_role("button", name="Sample clip")).to_be_visible()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent").startswith("Sample clip"):
            break
    page.keyboard.press("Enter")
    studio.is_live()
    page.locator("body").press("/")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("claymation")
    page.keyboard.press("Enter")
    studio.until(lambda: gateway.fake.painted[-1][2] == "claymation", "the prompt")
    page.locator("#stage").focus()
    page.keyboard.press("n")
    expect(page.locator(".tile")).to_have_count(2)
    page.keyboard.press("2")
    expect(page.locator(".tile").nth(1)).to_have_attribute("data-program", "true")
    page.keyboard.press("Alt+1")
    expect(page.locator(".tile").first).to_have_attribute("data-focused", "true")
    split = page.get_by_role("slider", name="Split between input and output")
    split.focus()
    page.keyboard.press("ArrowLeft")
    expect(split).to_have_value("0.49")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Cut that tile to program")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)  # Closed, it is there until its page has heard of it.
    page.locator("#stage").focus()
    expect(page.locator("#stage")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator(".pill")).to_have_text("Paused")
    page.get_by_role("tab", name="Look").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Motion")).to_be_focused()


def test_nothing_is_cut_off_or_lies_over_another(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    page = studio.page
    studio.start("Sample clip")
    page.locator("body").press("?")
    assert page.get_by_role("dialog").evaluate("one => one.scrollHeight - one.clientHeight") == 0
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Viewers' link").click()
    code = page.get_by_role("dialog").locator(".command code")
    assert code.evaluate("one => one.scrollWidth - one.clientWidth") == 0
    note = page.get_by_role("dialog").locator(".note")
    option = note.locator("code").bounding_box()
    text = note.bounding_box()
    assert option is not None
    assert text is not None
    assert text["height"] < 5 * option["height"], "the option stands in its sentence"
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 844, "height": 390})
    views, figures = (page.locator(".under > *").nth(at).bounding_box() for at in (0, 1))
    panel = page.locator(".panels").bounding_box()
    assert views is not None
    assert figures is not None
    assert panel is not None
    assert views["x"] + views["width"] <= figures["x"] or views["y"] + views["height"] <= figures["y"]
    assert figures["x"] + figures["width"] <= panel["x"]


def test_a_screen_reader_hears_what_changes(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url)
    studio.start("Sample clip")
    studio.page.locator("body").press("n")
    status = studio.page.locator("[aria-live=polite]").first
    expect(status).to_contain_text("Tile 2 is live")
    gateway.run(gateway.fake.cut_all())
    expect(status).to_contain_text(re.compile("Connected"), timeout=WITHIN_MS)


def test_a_phone_scrolls_down_only(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    wide = "document.documentElement.scrollWidth"
    assert studio.page.evaluate(wide) <= 360
    studio.start("Sample clip")
    studio.page.get_by_role("button", name="Add a look").click()
    for panel in PANELS:
        studio.panel(panel)
        assert studio.page.evaluate(wide) <= 360, panel
    for view in ("Side by side", "Wall"):
        studio.look(view)
        assert studio.page.evaluate(wide) <= 360, view
    studio.page.get_by_role("button", name="Keys").click()
    assert studio.page.evaluate(wide) <= 360


def test_the_theme_is_the_systems_until_it_is_chosen(open_studio: Open, gateway: Gateway) -> None:
    studio = open_studio(gateway.url, color_scheme="light")
    page = studio.page
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) == light
    page.get_by_role("button", name="Theme: auto").click()
    assert page.evaluate(background) == dark
    assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 150 < sum(map(int, re.findall(r"\d+", light)[:3]))
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(background) == dark
