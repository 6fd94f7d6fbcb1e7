"""The program on outputs beside the page: a real studio, a real service, and an output that keeps pictures.

The kernel module for virtual cameras is not everywhere: what is used of pyvirtualcam is stood in for, but for
its refusal.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import threading
from typing import Any

import numpy as np
import pytest
import simplejpeg
from rearview.errors import ConfigError
from rearview.studio.pictures import Picture, contained
from rearview.studio.stage.outputs import showing
from rearview.studio.stage.virtual_camera import FPS, HEIGHT, WIDTH, VirtualCamera
from support.raw_stream import eventually, running
from support.require import skip_or_fail
from support.studio import StudioUnderTest, studio

pytestmark = pytest.mark.integration

RED, BLUE = (200, 40, 40), (40, 60, 210)


def plain(colour: tuple[int, int, int], width: int = 64, height: int = 64) -> Picture:
    return np.full((height, width, 3), colour, np.uint8)


def jpeg(colour: tuple[int, int, int]) -> bytes:
    return simplejpeg.encode_jpeg(plain(colour), 95, "RGB", "420")


class Kept:
    """An output that keeps what it is given; with `fault` it takes nothing."""

    name = "a kept picture"

    def __init__(self, fault: str = "") -> None:
        self.pictures: list[Picture] = []
        self.fault, self.is_closed = fault, False

    def send(self, picture: Picture) -> None:
        if self.fault:
            raise OSError(self.fault)
        self.pictures.append(picture)

    def close(self) -> None:
        self.is_closed = True

    def shows(self, colour: tuple[int, int, int]) -> bool:
        return bool(self.pictures) and bool(np.abs(self.pictures[-1].mean((0, 1)) - colour).max() < 8)


async def watched(under: StudioUnderTest, outputs: int = 1) -> None:
    """Wait until a wall whose page is there is shown on so many outputs."""

    def is_so() -> bool:
        walls = under.gateway.own_walls
        return any(wall.page.is_there and len(wall.viewers) == outputs for wall in walls)

    await eventually(is_so)


async def test_an_output_shows_the_program_of_a_page_and_of_the_next_when_that_is_gone() -> None:
    output = Kept()
    async with (
        running() as service,
        studio(service.address) as under,
        showing(under.gateway, [output], patience_s=0.0),
    ):
        async with under.page() as second:
            async with under.page() as first:
                await first.open()
                await watched(under)
                await first.frame(0, jpeg(RED))
                await eventually(lambda: output.shows(RED))
                assert output.pictures[-1].shape == (64, 64, 3)
                await second.open()
                await second.frame(0, jpeg(BLUE))
                await second.wait(lambda: len(second.pictures) == 1)
                await first.frame(1, jpeg(RED))
                await first.wait(lambda: len(first.pictures) == 2)
                seen = len(output.pictures)
                await eventually(lambda: len(output.pictures) > seen)
                assert output.shows(RED), "another page takes nothing from the one that is shown"
            await second.frame(1, jpeg(BLUE))
            await second.wait(lambda: len(second.pictures) == 2)
            await watched(under)
            await second.frame(2, jpeg(BLUE))
            await eventually(lambda: output.shows(BLUE))
        assert sum(len(wall.viewers) for wall in under.gateway.own_walls) == 1
    assert output.is_closed


async def test_an_output_stays_with_a_page_that_loses_its_socket_and_comes_back() -> None:
    output = Kept()
    async with (
        running() as service,
        studio(service.address) as under,
        showing(under.gateway, [output], patience_s=600.0),
        under.page() as other,
    ):
        async with under.page() as page:
            await page.open()
            await watched(under)
            await page.frame(0, jpeg(RED))
            await eventually(lambda: output.shows(RED))
            key = page.said("welcome")[0]["wall"]
            await other.open()
            await other.frame(0, jpeg(BLUE))
            await other.wait(lambda: len(other.pictures) == 1)
        (left,) = [wall for wall in under.gateway.own_walls if wall.key == key]
        await eventually(lambda: not left.page.is_there)
        seen = len(output.pictures)
        await other.frame(1, jpeg(BLUE))
        await eventually(lambda: len(output.pictures) >= seen + 3)
        assert output.shows(RED), "it waits for its page"
        async with under.page(wall=key) as again:
            await again.frame(0, jpeg(BLUE))
            await eventually(lambda: output.shows(BLUE))
            assert len(left.viewers) == 1


async def test_a_cut_is_seen_on_the_output() -> None:
    output = Kept()
    async with (
        running() as service,
        studio(service.address) as under,
        showing(under.gateway, [output]),
        under.page() as page,
    ):
        await page.open(0)
        await page.open(1, settings={"prompt": "b"})
        await watched(under)
        await page.frame(0, jpeg(RED))
        await eventually(lambda: output.shows(RED))
        await page.say({"type": "program", "a": 1})
        await page.frame(1, jpeg(BLUE))
        await eventually(lambda: output.shows(BLUE))


async def test_an_output_that_fails_says_so_and_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    broken, whole = Kept("the device is gone"), Kept()
    async with (
        running() as service,
        studio(service.address) as under,
        showing(under.gateway, [broken, whole]),
        under.page() as page,
    ):
        with caplog.at_level(logging.WARNING, logger="rearview.studio.stage.outputs"):
            await page.open()
            await watched(under, 2)
            await page.frame(0, jpeg(RED))
            said = await page.until("trouble")
        assert (said["title"], said["help"]) == ("a kept picture has ended", "the device is gone.")
        assert "the device is gone" in caplog.text
        await eventually(lambda: whole.shows(RED))
        (wall,) = under.gateway.own_walls
        await eventually(lambda: len(wall.viewers) == 1)
    assert broken.is_closed
    assert whole.is_closed


class Slow(Kept):
    """Takes its first picture until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_end, self.closed_while_sending = threading.Event(), threading.Event(), False

    def send(self, picture: Picture) -> None:
        self.began.set()
        assert self.may_end.wait(20.0)
        self.closed_while_sending = self.is_closed


async def test_an_output_is_closed_only_when_its_thread_sends_no_more() -> None:
    output = Slow()
    async with running() as service, studio(service.address) as under, under.page() as page:
        shows = showing(under.gateway, [output])
        await shows.__aenter__()
        await page.open()
        await watched(under)
        await page.frame(0, jpeg(RED))
        await eventually(output.began.is_set)
        ending = asyncio.create_task(shows.__aexit__(None, None, None))
        await asyncio.wait([ending], timeout=0.2)
        assert not output.is_closed
        output.may_end.set()
        await ending
        assert output.is_closed
        assert not output.closed_while_sending


async def test_answers_that_are_no_pictures_are_not_shown() -> None:
    output = Kept()
    async with (
        running() as service,
        studio(service.address) as under,
        showing(under.gateway, [output]),
        under.page() as page,
    ):
        await page.open(drop_policy="lossless")
        await watched(under)
        await page.frame(0, b"no picture")
        await page.wait(lambda: len(page.pictures) == 1)
        await page.frame(1, jpeg(BLUE))
        await eventually(lambda: output.shows(BLUE))


class Device:
    """Of pyvirtualcam.Camera what is used."""

    device = "/dev/video-of-a-test"

    def __init__(self, **options: Any) -> None:
        self.options, self.frames, self.is_closed = options, [], False
        self.is_gone = False

    def send(self, frame: Picture) -> None:
        if self.is_gone:
            raise RuntimeError("the device is gone")
        self.frames.append(frame)

    def close(self) -> None:
        self.is_closed = True


def test_a_camera_has_one_size_whatever_the_picture_has() -> None:
    made: list[Device] = []

    def make(**options: Any) -> Device:
        made.append(Device(**options))
        return made[-1]

    camera = VirtualCamera.open(make, device="one")
    (device,) = made
    assert device.options == {"width": WIDTH, "height": HEIGHT, "fps": FPS, "device": "one"}
    assert camera.device == device.device
    for picture in (plain(RED), plain(RED, 640, 480)):
        camera.send(picture)
        shown = device.frames[-1]
        assert (shown.shape, shown.dtype, shown.flags.c_contiguous) == ((HEIGHT, WIDTH, 3), np.uint8, True)
        assert np.abs(shown[HEIGHT // 2, WIDTH // 2] - np.array(RED)).max() < 8
        assert shown[:, :100].max() == 0, "black beside it"
    device.is_gone = True
    with pytest.raises(OSError, match="gone"):
        camera.send(plain(RED))
    camera.close()
    assert device.is_closed


@pytest.mark.parametrize(("width", "height"), [(100, 500), (500, 100), (64, 64), (1920, 1080)])
def test_a_picture_stands_whole_in_the_middle(width: int, height: int) -> None:
    whole = contained(plain(BLUE, width, height), 320, 200)
    assert whole.shape == (200, 320, 3)
    assert whole[100, 160].max() > 100
    lit = np.argwhere(whole.max(2) > 100)
    (top, left), (bottom, right) = lit.min(0), lit.max(0)
    assert abs(top - (199 - bottom)) <= 1
    assert abs(left - (319 - right)) <= 1
    assert bottom - top == 199 or right - left == 319


def test_without_a_device_it_is_refused_at_once_with_the_reason() -> None:
    if importlib.util.find_spec("pyvirtualcam") is None:
        skip_or_fail("pyvirtualcam is missing")
    with pytest.raises(ConfigError, match=r"--virtual-camera: .*/dev/no-such-camera"):
        VirtualCamera.open(device="/dev/no-such-camera")
