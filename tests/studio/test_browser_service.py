"""The studio as `rearview studio` serves it: page, gateway, plain service and the pocket model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect
from support.browser_tab import CAMERA_COLOUR, WITHIN_MS, Tab

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

Open = Callable[..., Tab]
START_S = 120


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    """Of a studio that stays for the module."""
    command = [sys.executable, "-m", "rearview.cli.main", "studio", "--port", "0", "--no-open"]
    environment = {**os.environ, "PYTHONPATH": str(root / "services"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    watch = threading.Timer(START_S, process.kill)
    watch.start()
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if found := re.match(r"STUDIO (\S+)", line):
            break
    else:
        raise AssertionError(f"it did not start: {lines}")
    watch.cancel()
    reading = threading.Thread(target=process.stdout.read)
    reading.start()
    yield found.group(1)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    reading.join()
    process.stdout.close()


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
