"""The studio as `rearview studio` serves it: page, gateway, plain service and the pocket model."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from pythonosc.udp_client import SimpleUDPClient
from support.browser_tab import CAMERA_COLOUR, WITHIN_MS, Tab
from support.pages import blocks
from support.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

Open = Callable[..., Tab]
START_S = 120


@contextmanager
def process(told: str, *arguments: str, cwd: Path, **environment: str) -> Iterator[str]:
    """A process of Python from the moment that it says so; yields what the pattern's group found."""
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    watch = threading.Timer(START_S, process.kill)
    watch.start()
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(told, line):
            break
    else:
        raise AssertionError(f"it did not start: {lines}")
    watch.cancel()
    reading = threading.Thread(target=process.stdout.read)
    reading.start()
    try:
        yield found.group(1)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        reading.join()
        process.stdout.close()


@pytest.fixture(scope="module")
def shop_port() -> int:
    """Of another site, whose pages the studio knows."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def osc() -> Iterator[SimpleUDPClient]:
    """What turns the studio by OSC."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with SimpleUDPClient("127.0.0.1", port) as client:
        yield client


@pytest.fixture(scope="module")
def url(root: Path, shop_port: int, osc: SimpleUDPClient) -> Iterator[str]:
    """Of a studio that stays for the module."""
    command = ("-m", "rearview.cli.main", "studio", "--port", "0", "--no-open", "--webrtc")
    allowed = ("--allow-origin", f"http://127.0.0.1:{shop_port}", "--osc", str(osc._port))
    with process(r"STUDIO (\S+)", *command, *allowed, cwd=root, PYTHONPATH=str(root / "services")) as url:
        yield url


def test_a_look_returns_changes_at_its_frame_and_outlives_a_reload(open_studio: Open, url: str) -> None:
    studio = open_studio(url)
    page = studio.page
    # The model may still be loading.
    expect(page.get_by_role("group", name="Begin as")).to_be_visible(timeout=1000 * START_S)
    studio.start("Camera")
    before = studio.frame
    studio.until(lambda: studio.frame > before + 5, "more frames")
    page.get_by_role("button", name="blueprint", exact=True).click()
    effect = page.get_by_label("Prompt", exact=True).first.locator(".card-head .effect")
    expect(effect).to_contain_text("#", timeout=WITHIN_MS)
    # A blueprint of a red picture is blue, and its input beside it is red.
    studio.until(lambda: blue_over_red(studio.colour(0.6, 0.95)) > 10, "the new look")
    assert blue_over_red(studio.colour(0.05, 0.4)) < -60
    page.reload()
    studio.is_live()
    expect(page.locator("#prompt")).to_have_value("blueprint")


def blue_over_red(colour: object) -> float:
    red, _, blue = colour  # type: ignore[misc]
    return float(blue - red)


def test_osc_turns_the_look_and_loads_a_preset_of_the_page(
    open_studio: Open, url: str, osc: SimpleUDPClient
) -> None:
    studio = open_studio(url)
    page = studio.page
    expect(page.get_by_role("group", name="Begin as")).to_be_visible(timeout=1000 * START_S)
    page.get_by_role("button", name="natural", exact=True).click()
    studio.start("Camera")
    studio.panel("Presets")
    page.keyboard.press("Shift+1")
    osc.send_message("/rearview/1/prompt", "blueprint")
    expect(studio.panel("Look").locator("#prompt")).to_have_value("blueprint")
    studio.until(lambda: blue_over_red(studio.colour(0.6, 0.95)) > 10, "the look that was asked by OSC")
    osc.send_message("/rearview/1/strength/fader", 1.0)
    expect(page.get_by_label("Strength", exact=True)).to_have_value("1")
    osc.send_message("/rearview/1/preset", 1)
    studio.until(lambda: blue_over_red(studio.colour(0.6, 0.95)) < -20, "the look of the preset")
    osc.send_message("/rearview/1/colour", 1.0)
    said = page.get_by_role("region", name="What went wrong")
    expect(said).to_contain_text("there is no such setting")
    assert studio.page.get_by_label("Strength", exact=True).input_value() == "0.4"


def test_two_tabs_never_see_each_others_pictures(open_studio: Open, url: str, blue_clip: Path) -> None:
    red, blue = open_studio(url), open_studio(url)
    for studio in (red, blue):
        expect(studio.page.get_by_role("group", name="Begin as")).to_be_visible(timeout=WITHIN_MS)
        studio.page.get_by_role("button", name="natural", exact=True).click()
    red.start("Camera")
    blue.page.set_input_files("input[type=file]", str(blue_clip))
    blue.is_live()
    for studio in (red, blue):
        studio.look("Picture")
    red.until(lambda: blue_over_red(red.colour(0.1, 0.9)) < -60, "a red picture")
    blue.until(lambda: blue_over_red(blue.colour(0.1, 0.9)) > 60, "a blue picture")
    for _ in range(5):
        assert blue_over_red(red.colour(0.1, 0.9)) < -60, CAMERA_COLOUR
        assert blue_over_red(blue.colour(0.1, 0.9)) > 60


def test_a_killed_replica_shows_a_pause_and_goes_on(open_studio: Open, url: str) -> None:
    studio = open_studio(url)
    studio.start("Sample clip")
    health = studio.panel("Health")
    health.get_by_role("button", name="Kill a replica").first.click()
    expect(health.get_by_label("Pauses")).to_contain_text("lost", timeout=3 * WITHIN_MS)
    before = studio.frame
    studio.until(lambda: studio.frame > before + 5, "pictures after it")


def test_a_viewer_sees_the_program_by_its_code(open_studio: Open, url: str) -> None:
    studio = open_studio(url)
    studio.start("Sample clip")
    page = studio.page
    page.get_by_role("button", name="Viewers' link and QR code").click()
    code = page.get_by_role("img", name="QR code of the viewers' link")
    studio.until(lambda: code.evaluate("image => image.naturalWidth > 0"), "the code")
    link = page.get_by_role("dialog").locator("code").first.inner_text()
    viewer = page.context.new_page()
    viewer.goto(link)
    feed = viewer.locator("#feed")
    Tab(viewer).until(lambda: int(feed.get_attribute("data-frame") or 0) > 0, "the viewer's picture")


COLOUR = """video => {
    const brush = new OffscreenCanvas(1, 1).getContext("2d");
    brush.drawImage(video, 0, 0, 1, 1);
    return [...brush.getImageData(0, 0, 1, 1).data];
}"""


def test_the_page_of_the_docs_paints_the_camera(
    root: Path, browser: Browser, url: str, shop_port: int, tmp_path: Path
) -> None:
    docs = root / "docs/web.md"
    (text,) = re.findall(r"```html\n(.*?)```", docs.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in text.splitlines() if line.strip()]) <= 20
    (backend,) = blocks(docs)
    (tmp_path / "backend.py").write_text(backend.code, encoding="utf-8")
    studio = url.rstrip("/")
    (tmp_path / "page.html").write_text(text.replace("https://studio.example", studio), encoding="utf-8")
    how = {"STUDIO": studio, "TENANT_TOKEN": "anybody", "PORT": str(shop_port)}
    with process(r"Running on (\S+)", "backend.py", cwd=tmp_path, **how) as shop:
        context = browser.new_context(permissions=["camera"])
        page = context.new_page()
        page.set_default_timeout(WITHIN_MS)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(shop)
        video = page.locator("#painted")
        # The model may still be loading.
        eventually(lambda: video.evaluate("video => video.videoWidth") > 0, START_S)
        page.locator("#prompt").fill("blueprint")
        page.locator("#prompt").press("Enter")

        def is_blue() -> bool:
            """A blueprint of a red picture."""
            red, _, blue, _ = video.evaluate(COLOUR)
            return bool(blue > red + 10)

        eventually(is_blue, WITHIN_MS / 1000)
        expect(page.locator("#status")).to_be_empty()
        assert faults == []
        context.close()


def test_a_page_of_the_docs_sends_a_camera_by_whip_and_another_watches_it_by_whep(
    open_studio: Open, url: str, root: Path
) -> None:
    text = (root / "docs" / "webrtc.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```html\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    mine = snippet.replace("http://127.0.0.1:8600", url.rstrip("/"))
    sending = re.compile(r"^(const camera|await connect\(`\$\{studio\}/whip).*\n", re.MULTILINE)
    assert len(sending.findall(mine)) == 2
    studio = open_studio(url)
    begin = studio.page.get_by_role("group", name="Begin as")
    expect(begin).to_be_visible(timeout=1000 * START_S)  # The model may still be loading.
    for page, content in ((studio.page, mine), (studio.page.context.new_page(), sending.sub("", mine))):
        shows_a_blueprint(page, url, content)


def shows_a_blueprint(page: Page, url: str, content: str) -> None:
    """A page of the studio's own origin with this content: in its video a red camera is blue."""
    page.route("**/own", lambda route: route.fulfill(body=content, content_type="text/html"))
    page.goto(url + "own")
    tab = Tab(page)
    tab.until(lambda: blue_over_red(page.evaluate(MEAN_COLOUR)) > 10, "the translated camera")


MEAN_COLOUR = """() => {
  const video = document.querySelector("video"), canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}"""
