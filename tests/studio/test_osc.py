"""OSC by python-osc's own client over real UDP, before a real studio and a real service."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pythonosc.osc_bundle import OscBundle
from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message_builder import OscMessageBuilder
from pythonosc.udp_client import SimpleUDPClient
from rearview.contract.opening import OpenRequest
from rearview.contract.settings import SettingsChange
from rearview.errors import ConfigError, InvalidRequest
from rearview.studio.camera import Camera
from rearview.studio.dials import Turn
from rearview.studio.protocol import Hello
from rearview.studio.stage.osc import Asked, OscPort, _do, _Listener, asked, listening
from support.raw_stream import eventually, running
from support.studio import Page, StudioUnderTest, studio

pytestmark = pytest.mark.integration

LOSSLESS = {"drop_policy": "lossless"}


@asynccontextmanager
async def stage(service: Any) -> AsyncIterator[tuple[StudioUnderTest, SimpleUDPClient]]:
    """A studio that hears OSC on a free port of loopback, and a client there."""
    async with studio(service.address) as under:
        port = OscPort.bind("0")
        number = int(port.address.rpartition(":")[2])
        assert port.address == f"127.0.0.1:{number}"
        async with listening(under.gateway, port):
            with SimpleUDPClient("127.0.0.1", number) as client:
                yield under, client


async def turned_until(page: Page, frame: int, **wanted: Any) -> dict[str, Any]:
    """Send frames from this one on until a turned change has led to these settings."""

    def settings() -> dict[str, Any]:
        said = page.said("turned")
        return said[-1]["settings"] if said else {}

    while not wanted.items() <= settings().items():
        await page.frame(frame)
        frame += 1
        await page.wait(lambda: page.num_answers >= page.sent)
    return page.said("turned")[-1]


async def test_an_address_turns_a_setting_at_a_frame_and_the_page_hears_of_it() -> None:
    async with running() as service, stage(service) as (under, osc), under.page() as page:
        await page.open(**LOSSLESS)
        await page.frame(0)
        await page.wait(lambda: page.num_answers == 1)
        osc.send_message("/rearview/1/strength", 0.75)
        said = await turned_until(page, 1, strength=0.75)
        assert said["asked"] == {"strength": 0.75}
        assert (said["rejected"], said["tile"]) == (None, 0)
        assert said["frame"] >= 1
        osc.send_message("/rearview/1/steps/fader", 0.0)
        await turned_until(page, 50, steps=1)
        osc.send_message("/rearview/prompt", "neon lights")
        await turned_until(page, 100, prompt="neon lights", strength=0.75)
        assert page.said("trouble") == []


async def test_a_fader_at_200_messages_a_second_is_one_change_a_frame_and_ends_at_its_last() -> None:
    async with running() as service, stage(service) as (under, osc), under.page() as page:
        await page.open(**LOSSLESS)
        for frame in range(10):
            for step in range(40):
                osc.send_message("/rearview/1/strength", (401 + 40 * frame + step) / 800)
                await asyncio.sleep(0)
            await page.frame(frame)
            await page.wait(lambda: page.num_answers >= page.sent)
        await turned_until(page, 10, strength=1.0)
        frames = [each["frame"] for each in page.said("turned")]
        assert frames == sorted(set(frames)), "one a frame"
        assert len(frames) <= page.sent
        strengths = [each["asked"]["strength"] for each in page.said("turned")]
        assert strengths == sorted(strengths)
        assert page.said("trouble") == []


async def test_every_page_obeys_that_has_the_tile_and_one_of_a_session_token_does_not() -> None:
    async with (
        running() as service,
        stage(service) as (under, osc),
        under.page() as one,
        under.page() as other,
        under.page() as without,
    ):
        await one.open(tile=2, **LOSSLESS)
        await other.open(tile=2, **LOSSLESS)
        async with under.http.post(f"{under.url}/api/tokens") as response:
            token = (await response.json())["token"]
        async with under.page(path="/session", token=token) as guest:
            await guest.open(**LOSSLESS)
            osc.send_message("/rearview/3/seed", 7)
            await turned_until(one, 0, seed=7)
            await turned_until(other, 0, seed=7)
            osc.send_message("/rearview/1/seed", 9)
            await one.until("trouble")
            await guest.frame(0)
            await guest.wait(lambda: guest.num_answers == 1 or len(guest.pictures) == 1)
            assert guest.said("turned") == guest.said("trouble") == []
        assert without.said("turned") == []


async def test_a_preset_is_asked_of_the_page_and_a_button_that_is_let_go_says_nothing() -> None:
    async with running() as service, stage(service) as (under, osc), under.page() as page:
        await page.open(**LOSSLESS)
        osc.send_message("/rearview/1/preset/3", 1.0)
        osc.send_message("/rearview/1/preset/3", 0.0)
        await page.until("recall", place=3)
        osc.send_message("/rearview/preset", 4)
        await page.until("recall", place=4)
        assert [(each["tile"], each["place"]) for each in page.said("recall")] == [(0, 3), (0, 4)]
        (wall,) = under.gateway.own_walls
        await page.socket.close()
        await eventually(lambda: not wall.page.is_there)
        with pytest.raises(InvalidRequest, match="closed"):
            _do(wall, 0, 3)


async def test_a_preset_is_asked_of_pages_and_a_camera_beside_them_is_no_trouble() -> None:
    async with running() as service, stage(service) as (under, osc), under.page() as page:
        wall, _ = under.gateway.enter(Hello())
        camera = Camera(wall, OpenRequest(settings=SettingsChange(prompt="a")), resumed=False)
        await camera.opened()
        osc.send_message("/rearview/1/preset", 3)
        said = await page.until("trouble")
        assert said["help"] == "presets are kept by pages, and this is a camera."
        await page.open(**LOSSLESS)
        osc.send_message("/rearview/1/preset", 4)
        await page.until("recall", tile=0, place=4)
        osc.send_message("/rearview/1/colour", 1)
        await page.until("trouble", title="OSC /rearview/1/colour")
        assert len(page.said("trouble")) == 2
        await camera.close()


async def test_what_makes_no_sense_is_said_on_the_page_and_in_the_log_once_a_second_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as service, stage(service) as (under, osc), under.page() as page:
        await page.open(**LOSSLESS)
        with caplog.at_level(logging.WARNING, logger="rearview.studio.stage.osc"):
            for _ in range(20):
                osc.send_message("/rearview/1/colour", 0.5)
            osc.send_message("/rearview/1/prompt", 0.5)
            osc.send_message("/rearview/1/strength", "S3CRET")
            osc.send_message("/rearview/4/strength", 0.5)
            osc.send_message("/1/fader1", 0.5)
            osc.send_message("/rearview/1/strength", [0.1, 0.2])
            osc._sock.sendto(b"no osc at all", (osc._address, osc._port))
            osc.send_message("/rearview/1/seed", 5)
            await turned_until(page, 0, seed=5)
        said = {each["title"]: each["help"] for each in page.said("trouble")}
        assert "there is no such setting; there are: strength, steps" in said["OSC /rearview/1/colour"]
        assert said["OSC /rearview/1/prompt"] == "words are needed."
        assert said["OSC /rearview/4/strength"] == "tile 4 is not open."
        assert said["OSC /1/fader1"] == "an address begins with /rearview/."
        assert said["OSC"] == "this is no OSC."
        logged = [each.getMessage() for each in caplog.records]
        assert sum("colour" in each for each in logged) == 1
        assert len(logged) == 7
        assert not any("S3CRET" in each for each in logged)
        osc.send_message("/rearview/1/strength", 0.5)
        await turned_until(page, 100, strength=0.5)


async def test_a_flood_of_nonsense_is_cut_short_and_the_page_keeps_its_link(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as service, stage(service) as (under, osc), under.page() as page:
        await page.open(**LOSSLESS)
        with caplog.at_level(logging.WARNING, logger="rearview.studio.stage.osc"):
            for number in range(3000):
                osc.send_message(f"/rearview/1/colour{number}", 0.5)
                await asyncio.sleep(0)  # The loop reads a packet in each of its rounds.
            osc.send_message("/rearview/1/seed", 5)
            await turned_until(page, 0, seed=5)
        seconds = 1 + caplog.records[-1].created - caplog.records[0].created
        assert 16 <= len(caplog.records) <= 16 * seconds
        assert len(page.said("trouble")) <= len(caplog.records)


def bundle_of(**values: float | str) -> OscBundle:
    """Settings of the first tile."""
    bundle = OscBundleBuilder(IMMEDIATELY)
    for name, value in values.items():
        message = OscMessageBuilder(f"/rearview/1/{name}")
        message.add_arg(value)
        bundle.add_content(message.build())
    return bundle.build()


async def test_one_refused_value_takes_none_of_the_others_with_it() -> None:
    async with running() as service, stage(service) as (under, osc), under.page() as page:
        await page.open(**LOSSLESS)
        osc.send(bundle_of(strength=0.75, prompt="", seed=3))
        await turned_until(page, 0, strength=0.75, seed=3)
        told = [(each["asked"], (each["rejected"] or {}).get("reason")) for each in page.said("turned")]
        assert told == [({"prompt": ""}, "PROMPT_EMPTY"), ({"strength": 0.75}, None), ({"seed": 3}, None)]


async def test_a_bundle_is_obeyed_whole() -> None:
    async with running() as service, stage(service) as (under, osc), under.page() as page:
        await page.open(**LOSSLESS)
        osc.send(bundle_of(seed=3, delta=0.5))
        said = await turned_until(page, 0, seed=3, delta=0.5)
        assert said["asked"] == {"seed": 3, "delta": 0.5}, "one change"


async def test_what_the_service_refuses_is_said_and_the_session_goes_on() -> None:
    async with running() as service, stage(service) as (under, osc), under.page() as page:
        await page.open(**LOSSLESS)
        osc.send_message("/rearview/1/prompt", "x" * 60_000)
        await page.frame(0)
        said = await page.until("turned")
        assert said["rejected"]["reason"].startswith("PROMPT")
        osc.send_message("/rearview/1/seed", 8)
        await turned_until(page, 1, seed=8)


async def test_a_page_turns_a_dial_by_its_name_and_a_knob_too_many_ends_no_wall() -> None:
    async with running() as service, studio(service.address) as under, under.page() as page:
        await page.open(**LOSSLESS)
        turn = {"type": "turn", "tile": 0}
        for _ in range(30):
            await page.say({**turn, "name": "adapter/gone", "share": 0.5})
        await page.say({**turn, "tile": 5, "name": "strength", "share": 0.5})
        await page.say({**turn, "name": "jpeg_quality", "share": 0.0})
        said = await turned_until(page, 0, jpeg_quality=40)
        assert said["asked"] == {"jpeg_quality": 40}
        helps = {each["help"] for each in page.said("trouble")}
        assert helps == {"there is no such adapter that takes a weight.", "tile 6 is not open."}


@pytest.mark.parametrize(
    ("address", "value", "means"),
    [
        ("/rearview/1/strength", 0.5, Asked(0, Turn("strength", 0.5))),
        ("/rearview/9/adapter/ink/fader", 1, Asked(8, Turn("adapter/ink", 1, is_share=True))),
        ("/rearview/adapter/ink", 1, Asked(None, Turn("adapter/ink", 1))),
        ("/rearview/2/preset", 3.0, Asked(1, 3)),
        ("/rearview/preset/9", 1, Asked(None, 9)),
        ("/rearview/preset/9", 0, Asked(None, None)),
    ],
)
def test_addresses_mean(address: str, value: object, means: Asked) -> None:
    assert asked(address, [value]) == means


@pytest.mark.parametrize(
    ("address", "values"),
    [
        ("/rearview", [1]),
        ("rearview/1/seed", [1]),
        ("/rearview/0/seed", [1]),
        ("/rearview/10/seed", [1]),
        ("/rearview/1", [1]),
        ("/rearview/1/seed", []),
        ("/rearview/1/seed", [True]),
        ("/rearview/1/seed", [b"x"]),
        ("/rearview/preset", [0]),
        ("/rearview/preset", [1.5]),
        ("/rearview/preset", [float("nan")]),
        ("/rearview/preset", [float("inf")]),
        ("/rearview/preset", ["x"]),
        ("/rearview/preset/3/4", [1]),
        ("/rearview/preset/10", [1]),
    ],
)
def test_addresses_that_mean_nothing_are_refused(address: str, values: list[Any]) -> None:
    with pytest.raises(InvalidRequest):
        asked(address, values)


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: b"/rearview\0\0\0,f\0\0" + rest))
def test_no_packet_whatever_fails_the_listener(packet: bytes) -> None:
    class NoPages:
        own_walls = ()

        def tell_pages(self, said: object) -> None:
            pass

    async def hear() -> None:
        _Listener(NoPages()).datagram_received(packet, None)  # type: ignore[arg-type]

    asyncio.run(hear())


def test_a_port_that_is_taken_or_is_none_is_refused_with_the_option() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        for where in (str(taken.getsockname()[1]), "x", "70000", "127.0.0.1:", "no.such.host.invalid:9000"):
            with pytest.raises(ConfigError, match="--osc"):
                OscPort.bind(where)
    free = OscPort.bind("0.0.0.0:0")
    assert free.address.startswith("0.0.0.0:")
    free.socket.close()
