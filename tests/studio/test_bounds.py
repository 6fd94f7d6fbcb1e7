"""A page or a viewer that is slow, silent or hostile costs a bounded amount, and nobody else anything."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import WSMsgType
from rearview.studio.flow import MAX_CONTROLS, MAX_UNACKNOWLEDGED
from rearview.studio.protocol import FrameIn, PictureOut, frame_out
from support.raw_stream import assert_nothing_held, running
from support.studio import DEADLINE_S, Page, StudioUnderTest, studio

pytestmark = pytest.mark.integration

LOSSLESS = {"drop_policy": "lossless"}


def socket_of(under: StudioUnderTest, path: str) -> Any:
    """A socket that nobody reads unless told to."""
    return under.http.ws_connect(under.url + path, headers={"Origin": under.url}, max_msg_size=0)


async def send_while_there_is_credit(page: Page) -> None:
    """Send frames until there has been no credit for a while."""
    idle = 0
    while idle < 20:
        if page.sent < page.credit:
            await page.frame(page.sent)
            idle = 0
        else:
            idle += 1
            await asyncio.sleep(0.02)


async def test_a_page_that_takes_no_answers_is_given_a_bounded_number_and_goes_on_when_it_does() -> None:
    async with running() as service, studio(service.address) as under, under.page(acknowledges=False) as page:
        await page.open(**LOSSLESS)
        await send_while_there_is_credit(page)
        assert len(page.pictures) == MAX_UNACKNOWLEDGED
        sent = page.sent
        assert MAX_UNACKNOWLEDGED < sent < 100
        page.acknowledges = True
        await page.say({"type": "received", "answers": page.num_answers})
        await page.wait(lambda: len(page.pictures) == sent)
        for _ in range(20):
            await page.frame(page.sent)
        await page.wait(lambda: len(page.pictures) == sent + 20)
        assert page.answers() == {0: list(range(sent + 20))}
        assert page.said("dropped") == []


async def test_of_nine_live_tiles_one_that_is_behind_holds_up_no_other() -> None:
    async with running() as service, studio(service.address) as under, under.page() as page:
        for tile in range(2):
            await page.open(tile)
        for index in range(200):
            await page.frame(index)
        await page.wait(lambda: page.num_answers == 400)
        for tile in range(2):
            dropped = [each["frame"] for each in page.said("dropped", tile=tile)]
            shown = page.answers()[tile]
            assert sorted([*dropped, *shown]) == list(range(200)), "each is answered once"
            assert shown == sorted(shown)
            assert shown[-1] == 199, "the newest is never dropped"


async def test_a_frame_without_credit_or_out_of_order_is_an_error_and_no_more() -> None:
    async with running() as service, studio(service.address) as under, under.page() as page:
        await page.open(**LOSSLESS)
        await page.frame(7)
        await page.frame(7)
        assert (await page.until("error"))["reason"] == "MESSAGE_INVALID"
        flood = [frame_out(FrameIn(index, 0.0, b"x")) for index in range(8, 8 + 40)]
        await asyncio.gather(*(page.socket.send_bytes(each) for each in flood))
        assert (await page.until("error", reason="CREDIT_EXCEEDED"))["message"] == "a frame without credit"


async def test_frames_are_bounded_before_anything_looks_at_them() -> None:
    async with running() as service, studio(service.address) as under, under.page() as page:
        await page.open()
        await page.socket.send_bytes(frame_out(FrameIn(0, 0.0, bytes((1 << 20) + 1))))
        assert (await page.until("error"))["reason"] == "MESSAGE_TOO_LARGE"
        await page.frame(1)
        await page.wait(lambda: len(page.pictures) == 1)
        await page.socket.send_bytes(bytes(3 << 20))
        assert await page.ended() == 1009


async def test_ten_senseless_messages_in_a_row_end_the_wall_and_nine_do_not() -> None:
    senseless = ["", "{", '{"type":"open"}', '{"type":"kill","span":"fused"}', '{"type":"hello"}']
    async with running() as service, studio(service.address) as under:
        async with under.page() as page:
            await page.open()
            for _ in range(9):
                await page.socket.send_bytes(b"\x00")
            await page.frame(0)
            await page.wait(lambda: page.num_answers == 1)
            page.acknowledges = False  # else sense comes between
            for number in range(10):
                await page.socket.send_str(senseless[number % len(senseless)])
            await page.ended()
            reasons = {each["reason"] for each in page.said("error")}
            assert reasons == {"MESSAGE_INVALID", "METHOD_UNSUPPORTED", "ALREADY_OPEN"}
        async with under.page(wall=page.said("welcome")[0]["wall"]) as again:
            assert not again.said("welcome")[0]["resumed"]


async def test_a_flood_of_controls_is_answered_each_and_bounded() -> None:
    async with running() as service, studio(service.address) as under, under.page() as page:
        await page.open()
        flood = 10 * MAX_CONTROLS
        for number in range(flood):
            await page.say({"type": "control", "tile": 0, "id": number, "settings": {"seed": number}})
        await page.wait(lambda: len(page.said("applied")) == flood)
        rejected = [each["id"] for each in page.said("applied") if each["rejected"]]
        assert all(
            page.said("applied", id=each)[0]["rejected"]["reason"] == "CALLS_EXHAUSTED" for each in rejected
        )
        taken = [each["id"] for each in page.said("applied") if not each["rejected"]]
        assert taken == sorted(taken), "in order"
        assert len(taken) >= MAX_CONTROLS
        await page.say({"type": "control", "tile": 0, "id": flood, "settings": {"seed": 5}})
        assert (await page.until("applied", id=flood))["settings"]["seed"] == 5


async def test_opening_and_closing_without_end_ends_the_wall() -> None:
    async with running(slots=64) as service, studio(service.address) as under, under.page() as page:
        opening = {"type": "open", "tile": 0, "options": {"settings": {"prompt": "a"}}}
        with suppress(ConnectionError):
            for number in range(400):
                await page.say({"type": "close", "tile": 0} if number % 2 else opening)
        await page.ended()
        assert page.said("error")[0]["reason"] in ("CALLS_EXHAUSTED", "ALREADY_OPEN")
        await assert_nothing_held(service)


async def test_a_viewer_sees_the_program_and_can_do_nothing() -> None:
    async with running() as service, studio(service.address) as under, under.page() as page:
        for tile in range(3):
            await page.open(tile, **LOSSLESS)
        path = f"/view/{page.said('welcome')[0]['viewer']}/feed"
        viewer = under.page(path=path)
        await viewer.connect()
        assert (await viewer.until("program"))["a"] == 0
        for index in range(5):
            await page.frame(index)
        await viewer.wait(lambda: bool(viewer.pictures) and viewer.pictures[-1].frame == 4)
        assert {each.tile for each in viewer.pictures} == {0}
        await page.say({"type": "program", "a": 2, "b": 1, "mix": 0.5})
        await viewer.until("program", a=2, b=1)
        for index in range(5, 10):
            await page.frame(index)
        await viewer.wait(lambda: {each.tile for each in viewer.pictures if each.frame >= 5} == {1, 2})
        assert {each["type"] for each in viewer.messages} == {"program"}
        before = len(page.messages)
        for said in (
            {"type": "control", "tile": 0, "id": 1, "settings": {"seed": 1}},
            {"type": "bye"},
            {"type": "hello"},
        ):
            other = under.page(path=path)
            await other.connect()
            await other.until("program")
            await other.say(said)
            assert await other.ended() == 1008
            assert other.said("error")[0]["reason"] == "METHOD_UNSUPPORTED"
        await page.frame(10)
        await page.wait(lambda: page.answers()[0][-1] == 10)
        later = {each["type"] for each in page.messages[before:]}
        assert later <= {"credit", "stats"}, "nothing of it reached the wall"
        await viewer.socket.close()


async def test_a_slow_viewer_gets_the_newest_pictures_and_holds_up_nobody() -> None:
    large = bytes(256 << 10)
    async with running() as service, studio(service.address) as under, under.page() as page:
        await page.open(**LOSSLESS)
        path = f"/view/{page.said('welcome')[0]['viewer']}/feed"
        async with under.http.ws_connect(
            under.url + path, headers={"Origin": under.url}, max_msg_size=0
        ) as slow:
            await slow.send_json({"type": "hello"})
            for index in range(100):
                await page.frame(index, large)
            await page.wait(lambda: len(page.pictures) == 100)
            seen: list[int] = []
            async with asyncio.timeout(DEADLINE_S):
                while not seen or seen[-1] != 99:
                    message = await slow.receive()
                    if message.type is WSMsgType.BINARY:
                        seen.append(PictureOut.read(message.data).frame)
            assert seen == sorted(seen)
            assert len(seen) < 80, "most were never written"


async def test_a_page_whose_socket_is_slow_gets_new_pictures_and_hears_of_the_others() -> None:
    large = bytes(512 << 10)
    async with (
        running() as service,
        studio(service.address) as under,
        under.http.ws_connect(under.url + "/wall", headers={"Origin": under.url}, max_msg_size=0) as slow,
    ):
        await slow.send_json({"type": "hello"})
        await slow.send_json({"type": "open", "tile": 0, "options": {"settings": {"prompt": "a"}}})
        seen: list[int] = []
        dropped: dict[str, int] = {}
        sent = 0

        async def read(until: str) -> None:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    message = await slow.receive()
                    if message.type is WSMsgType.BINARY:
                        seen.append(PictureOut.read(message.data).frame)
                    elif (said := json.loads(message.data))["type"] == "dropped":
                        dropped[said["reason"]] = dropped.get(said["reason"], 0) + 1
                    elif said["type"] == until:
                        return
                    answers = len(seen) + sum(dropped.values())
                    await slow.send_json({"type": "received", "answers": answers})

        await read("opened")
        # A live tile gives credit for each frame that comes: nothing has to be read for it.
        for sent in range(1, 61):
            await slow.send_bytes(frame_out(FrameIn(sent, 0.0, large)))
            await asyncio.sleep(0.005)
        await slow.send_json({"type": "control", "tile": 0, "id": 1, "settings": {}})
        await read("applied")
        assert seen == sorted(seen)
        assert len(seen) + sum(dropped.values()) <= sent
        assert dropped, "the socket was slower than the pictures"


async def test_a_tile_whose_opening_makes_no_sense_is_refused_by_its_number() -> None:
    async with running() as service, studio(service.address) as under, under.page() as page:
        senseless = {"settings": {"prompt": "a", "strenght": 0.5}}
        await page.say({"type": "open", "tile": 1, "options": senseless})
        refused = await page.until("state", tile=1, state="refused")
        assert refused["reason"] == "MESSAGE_INVALID"
        assert page.said("error") == []
        await page.open(1)
        await page.say({"type": "open", "tile": 1, "options": senseless})
        assert (await page.until("error"))["reason"] == "MESSAGE_INVALID", "that one goes on"
        assert len(page.said("state", tile=1, state="refused")) == 1
