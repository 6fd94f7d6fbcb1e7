"""A page that loses its connection shows what it has, and goes on: nothing is lost, nothing comes twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rearview.studio.protocol import FrameIn, frame_out
from support.raw_stream import running
from support.studio import Page, StudioUnderTest, studio

pytestmark = pytest.mark.integration

FRAMES = 12
LOSSLESS = {"drop_policy": "lossless", "settings": {"prompt": "a"}}
OPEN = {"type": "open", "tile": 0, "options": LOSSLESS}


def control(number: int) -> dict[str, Any]:
    return {"type": "control", "tile": 0, "id": number, "settings": {"seed": number}}


SAID: list[str | bytes] = [json.dumps(OPEN)]
for _number in range(FRAMES):
    if _number in (3, 6):
        SAID.append(json.dumps(control(_number)))
    SAID.append(frame_out(FrameIn(_number, 0.0, b"%d" % _number)))


class Kept:
    """What a page that loses its sockets remembers: what it was given, over all of them."""

    def __init__(self, under: StudioUnderTest) -> None:
        self._under, self._hello = under, {}
        self.frames: list[int] = []
        self.applied: dict[int, int] = {}
        self.spent = self.sockets = 0

    async def socket(self, lives_for: int | None) -> bool:
        """Say all that was not heard, until so many messages have come. Whether all is answered."""
        page = self._under.page(acknowledges=False, **self._hello)
        await page.connect()
        welcome = await page.until("welcome")
        self.sockets += 1
        if self._hello:
            assert welcome["page"] == self._hello["page"], "it is the same page"
        left = SAID[welcome["heard"] :]
        seen = 0
        while not page._reader.done() and len(self.frames) < FRAMES:
            heard = len(page.messages) + len(page.pictures)
            if lives_for is not None and heard >= lives_for:
                page.socket._conn.transport.abort()  # type: ignore[union-attr]
                break
            while left and (isinstance(left[0], str) or page.credit > FRAMES - self._frames_in(left)):
                item = left.pop(0)
                send = page.socket.send_str if isinstance(item, str) else page.socket.send_bytes
                await send(item)  # type: ignore[arg-type]
            while len(page.messages) + len(page.pictures) == heard and not page._reader.done():
                await page._changed.wait()
            seen = self._take(page, seen)
            await page.say({"type": "received", "answers": len(self.frames)})
        await page.socket.close()
        await page._reader
        self._take(page, seen)
        self._hello = {"wall": welcome["wall"], "page": welcome["page"], "received": len(self.frames)}
        return len(self.frames) >= FRAMES

    def _take(self, page: Page, seen: int) -> int:
        self.frames += [each.frame for each in page.pictures[seen:]]
        self.applied |= {each["id"]: each["frame"] for each in page.said("applied")}
        assert not page.said("error")
        return len(page.pictures)

    @staticmethod
    def _frames_in(left: list[str | bytes]) -> int:
        return sum(isinstance(each, bytes) for each in left)


@pytest.mark.parametrize("lives_for", range(2, 26, 3))
async def test_wherever_the_socket_is_lost_each_frame_is_answered_once(lives_for: int) -> None:
    async with running() as service, studio(service.address) as under:
        kept = Kept(under)
        is_done = await kept.socket(lives_for)
        while not is_done:
            is_done = await kept.socket(None)
        assert kept.frames == list(range(FRAMES))
        assert kept.applied == {3: 3, 6: 6}
        assert kept.sockets == 2
        assert len(list(service.sessions)) == 1


async def test_a_page_that_comes_back_takes_the_place_of_its_dead_socket() -> None:
    async with running() as service, studio(service.address) as under, under.page() as page:
        opened = await page.open(**LOSSLESS)
        welcome = page.said("welcome")[0]
        hello = {"wall": welcome["wall"], "page": welcome["page"]}
        async with under.page(**hello) as other:
            assert not other.said("welcome")[0]["resumed"], "a duplicate of the tab is another page"
        async with under.page(**hello, received=0) as again:
            found = again.said("welcome")[0]
            assert (found["resumed"], found["heard"]) == (True, 1)
            assert [each["session_id"] for each in found["tiles"]] == [opened["session_id"]]
            assert await page.ended() is not None
            await again.frame(0)
            await again.wait(lambda: len(again.pictures) == 1)


async def test_a_page_of_before_is_not_taken_for_the_one_that_came_after_it() -> None:
    async with running() as service, studio(service.address) as under:
        async with under.page() as first:
            await first.open(**LOSSLESS)
            welcome = first.said("welcome")[0]
        async with under.page(wall=welcome["wall"]) as second:
            assert second.said("welcome")[0]["page"] != welcome["page"]
        async with under.page(wall=welcome["wall"], page=welcome["page"], received=0) as late:
            found = late.said("welcome")[0]
            assert (found["resumed"], found["heard"]) == (True, 0)
            assert found["page"] != welcome["page"]
