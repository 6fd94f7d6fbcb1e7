"""A browser, a camera that is none, and a gateway without a service, for tests of the page."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright
from support.browser_tab import CAMERA_COLOUR, CLIP_COLOUR, Gateway, Tab
from support.fake_gateway import FakeGateway, serving
from support.require import skip_or_fail

AXE = "axe-core@4.14.1"


@pytest.fixture(scope="session")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red picture with a bar that moves, as Chromium's fake camera takes it."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W320 H240 F20:1 Ip A1:1 C420jpeg\n")
        for frame in range(40):
            picture = np.full((240, 320, 3), CAMERA_COLOUR, np.uint8)
            picture[:, 8 * frame : 8 * frame + 8] = 240
            planes = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
            file.write(b"FRAME\n" + planes.to_ndarray().tobytes())
    return path


@pytest.fixture(scope="session")
def blue_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A blue clip of two seconds."""
    path = tmp_path_factory.mktemp("clip") / "blue.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for frame in range(40):
            picture = np.full((240, 320, 3), CLIP_COLOUR, np.uint8)
            picture[6 * frame : 6 * frame + 6] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's."""
    found = shutil.which("chromium")
    if found is None:
        skip_or_fail("chromium is missing (Debian: apt install chromium)")
    return found


@pytest.fixture(scope="session")
def chromium_arguments(camera: Path) -> list[str]:
    """A camera, sound that may play, and a name for this machine."""
    return [
        "--no-sandbox",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
        "--autoplay-policy=no-user-gesture-required",
        "--host-resolver-rules=MAP studio.test 127.0.0.1",
        "--auto-select-desktop-capture-source=Entire screen",
    ]


@pytest.fixture(scope="module")
def browser(chromium: str, chromium_arguments: list[str]) -> Iterator[Browser]:
    """Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=chromium_arguments)
        yield browser
        browser.close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    fake = FakeGateway()
    with serving(fake) as (url, loop):
        yield Gateway(fake, url, loop)


@pytest.fixture
def open_studio(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens tabs, each a person of its own; sees that nobody else was asked and nothing failed."""
    contexts: list[BrowserContext] = []
    opened: list[Tab] = []

    def open_one(url: str, *, may_use_camera: bool = True, **options: Any) -> Tab:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        context = browser.new_context(reduced_motion="reduce", **options)
        if may_use_camera:
            context.grant_permissions(["camera", "clipboard-read", "clipboard-write"])
        contexts.append(context)
        tab = Tab.watching(context.new_page())
        opened.append(tab)
        tab.page.goto(url)
        return tab

    yield open_one
    for context in contexts:
        context.close()
    for tab in opened:
        assert tab.errors == []
        assert len(tab.hosts) == 1, "no other host is asked"


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core as text, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        skip_or_fail("npm is missing")
    command = ["npm", "pack", "--silent", AXE]
    packed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    if packed.returncode:
        skip_or_fail(f"npm gives no {AXE}")
    with tarfile.open(folder / packed.stdout.strip()) as archive:
        content = archive.extractfile("package/axe.min.js")
        assert content is not None
        return content.read().decode("utf-8")
