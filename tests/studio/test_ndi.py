"""NDI over loopback, by its own library: a source that others see, and one that is painted."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simplejpeg
from pythonosc.udp_client import SimpleUDPClient
from rearview.cli.stage import Stage
from rearview.client import Style
from rearview.contract.opening import OpenRequest
from rearview.contract.settings import SettingsChange
from rearview.errors import ConfigError, Reason, StreamEnded
from rearview.studio.pictures import Picture
from rearview.studio.protocol import PictureOut
from rearview.studio.service import Service
from rearview.studio.stage.ndi import NdiIn, NdiOut, bringing, library
from rearview.studio.stage.outputs import showing
from support.raw_stream import eventually, running
from support.require import skip_or_fail
from support.studio import StudioUnderTest, studio

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

RED, BLUE = (200, 40, 40), (40, 60, 210)
LOOPBACK = "127.0.0.1"
WITHIN_S = 40.0
NEAR = 20
"""NDI sends brightness and colour, rounded and in video's range: up to 12 off here."""


@pytest.fixture(scope="module")
def ndi() -> Any:
    """NDI's library; there are no wheels for every system."""
    try:
        return library()
    except ConfigError as error:
        return skip_or_fail(error.message)


@pytest.fixture
def source() -> str:
    """A name that nobody else has."""
    return f"rearview test {uuid.uuid4().hex[:8]}"


def plain(colour: tuple[int, int, int]) -> Picture:
    return np.full((48, 64, 3), colour, np.uint8)


class Seen:
    """What a receiver of a source sees; it reads in a thread."""

    def __init__(self, ndi: Any, name: str) -> None:
        self.colour, self.shape = np.zeros(3), (0, 0)
        self._source = NdiIn(ndi, name, [LOOPBACK])
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for frame in self._source.frames():
            picture = frame.to_ndarray(format="rgb24")
            self.colour, self.shape = picture.mean((0, 1)), picture.shape[:2]

    def sees(self, colour: tuple[int, int, int]) -> bool:
        return bool(np.abs(self.colour - colour).max() < NEAR)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
def lamp(ndi: Any, source: str) -> Iterator[list[tuple[int, int, int]]]:
    """A source of one colour, the list's last, 20 times a second."""
    colours, over = [RED], threading.Event()

    def shine() -> None:
        sender = NdiOut(ndi, source)
        while not over.wait(0.05):
            sender.send(plain(colours[-1]))
        sender.close()

    thread = threading.Thread(target=shine)
    thread.start()
    yield colours
    over.set()
    thread.join()


async def test_the_program_is_a_source_that_others_receive(ndi: Any, source: str) -> None:
    output = NdiOut(ndi, source)
    assert output.full_name.endswith(f"({source})")
    seen = Seen(ndi, source)
    async with (
        running() as service,
        studio(service.address) as under,
        showing(under.gateway, [output]),
        under.page() as page,
    ):
        await page.open()
        (wall,) = under.gateway.own_walls
        await eventually(lambda: len(wall.viewers) == 1)
        for frame, colour in enumerate((RED, BLUE)):
            await page.frame(frame, simplejpeg.encode_jpeg(plain(colour), 95, "RGB", "420"))
            await eventually(lambda colour=colour: seen.sees(colour))  # type: ignore[misc]
        assert seen.shape == (48, 64)
    await seen.close()


async def test_a_source_is_found_on_loopback_painted_and_turned(
    ndi: Any, source: str, lamp: list[tuple[int, int, int]]
) -> None:
    asked = OpenRequest(settings=SettingsChange(prompt="a"), width=64, height=64)
    async with running() as service, studio(service.address) as under:
        async with bringing(under.gateway, NdiIn(ndi, source, [LOOPBACK]), asked):
            await eventually(lambda: len(under.gateway.own_walls) == 1)
            (wall,) = under.gateway.own_walls
            feed = f"{under.url}/view/{wall.viewer_key}/feed"
            async with under.http.ws_connect(feed, headers={"Origin": under.url}) as viewer:
                await viewer.send_json({"type": "hello"})
                await colour_of(viewer, RED)
                assert wall.tiles[0].said is not None
                assert wall.tiles[0].said.settings.prompt == "a"
                lamp.append(BLUE)
                await colour_of(viewer, BLUE)
        assert under.gateway.own_walls == []
        await eventually(lambda: not list(service.sessions))


async def test_without_a_prompt_a_source_is_painted_as_the_page_would_begin(ndi: Any, source: str) -> None:
    for styles, begins in (
        ((Style("natural", "as it is"), Style("neon", "neon lights")), "neon lights"),
        ((), "oil painting"),
    ):
        async with running() as service, studio(service.address) as under:
            under.gateway._connect = with_styles(under.gateway._connect, styles)  # type: ignore[method-assign]
            async with bringing(under.gateway, NdiIn(ndi, source, [LOOPBACK]), OpenRequest()):
                await eventually(lambda under=under: opened_as(under) != "")  # type: ignore[misc]
                assert opened_as(under) == begins


async def test_what_the_service_will_never_take_ends_it_with_a_word_on_the_page(
    ndi: Any, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    blank = OpenRequest(settings=SettingsChange(prompt=" "))
    async with (
        running() as service,
        studio(service.address) as under,
        under.page() as page,
        bringing(under.gateway, NdiIn(ndi, source, [LOOPBACK]), blank),
    ):
        said = await page.until("trouble", title="NDI in has ended")
        assert said["help"] == "the prompt is empty."
        await eventually(lambda: len(under.gateway.own_walls) == 1)
        assert caplog.text.count("the prompt is empty") == 1


def with_styles(connect: Any, styles: tuple[Style, ...]) -> Any:
    """The null model knows none."""

    async def connected(token: str | None, model: str) -> Service:
        service: Service = await connect(token, model)
        service.model = replace(service.model, styles=styles)
        return service

    return connected


def opened_as(under: StudioUnderTest) -> str:
    """The prompt in force on the first wall; empty: it is not open."""
    tiles = [tile for wall in under.gateway.own_walls for tile in wall.tiles.values()]
    return next((tile.said.settings.prompt for tile in tiles if tile.said is not None), "")


async def test_a_source_that_cannot_be_found_is_reached_by_its_place(
    ndi: Any, source: str, lamp: list[tuple[int, int, int]]
) -> None:
    create = ndi.FindCreate()
    create.extra_ips = LOOPBACK
    finder = ndi.find_create_v2(create)

    def place() -> str:
        found = [one for one in ndi.find_get_current_sources(finder) if f"({source})" in one.ndi_name]
        return found[0].url_address if found else ""

    await eventually(lambda: place() != "")
    seen = Seen(ndi, place())
    await eventually(lambda: seen.sees(RED))
    await seen.close()
    ndi.find_destroy(finder)


async def test_from_one_source_to_another_turned_by_osc(
    ndi: Any, source: str, lamp: list[tuple[int, int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    told = Stage.of(osc="0", ndi_in=source, ndi_out=f"{source} out", ndi_addresses=[LOOPBACK], ndi_prompt="a")
    assert [each.partition(":")[0] for each in told.words] == ["OSC", "NDI out", "NDI in"]
    seen = Seen(ndi, f"{source} out")
    async with running() as service, studio(service.address) as under, told.open(under.gateway):
        await eventually(lambda: seen.sees(RED))
        assert told.osc is not None
        with SimpleUDPClient(LOOPBACK, int(told.osc.address.rpartition(":")[2])) as osc:
            osc.send_message("/rearview/1/preset", 1)
            osc.send_message("/rearview/1/prompt", "b")
        (wall,) = under.gateway.own_walls

        def prompt() -> str:
            assert wall.tiles[0].said is not None
            return wall.tiles[0].said.settings.prompt

        await eventually(lambda: prompt() == "b")
        assert "OSC '/rearview/1/preset': presets are kept by pages, and this is a camera" in caplog.text
        ended = wall.tiles[0]
        assert ended._feed is not None
        ended._feed._session.abort(StreamEnded(Reason.REPLICA_LOST, "all are gone"))
        await eventually(lambda: wall.tiles[0] is not ended and wall.tiles[0].session_id != "")
        assert prompt() == "b", "a tile that is opened again keeps what was turned"
        lamp.append(BLUE)
        await eventually(lambda: seen.sees(BLUE))
    await seen.close()


async def colour_of(viewer: Any, colour: tuple[int, int, int]) -> None:
    """Read pictures until one has this colour, and the session's size."""
    async with asyncio.timeout(WITHIN_S):
        async for message in viewer:
            if isinstance(message.data, str):
                continue
            picture = simplejpeg.decode_jpeg(PictureOut.read(message.data).picture, colorspace="RGB")
            assert picture.shape == (64, 64, 3)
            if np.abs(picture.mean((0, 1)) - colour).max() < NEAR:
                return
    raise AssertionError("the viewer's link has ended")


async def test_a_source_that_is_not_there_is_sought_and_left_without_waiting_long(
    ndi: Any, source: str
) -> None:
    seen = Seen(ndi, source)
    await asyncio.sleep(0)
    began_s = time.monotonic()
    await seen.close()
    assert time.monotonic() - began_s < 5.0


def test_a_name_is_known_by_its_own_part_and_whole() -> None:
    one = NdiIn(None, "Stage (left)")
    assert one._is_meant("Stage (left)")
    assert one._is_meant("VM (Stage (left))")
    assert not one._is_meant("VM (left)")
    assert NdiIn(None, "left")._is_meant("VM (left)")
    assert not NdiIn(None, "left")._is_meant("left hand")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "NDIlib", None)
    with pytest.raises(ConfigError, match=r"rearview\[ndi\]"):
        library()
