"""A page of the studio without a browser: sends on schedule whatever comes back, and judges what does.

Its frames are bytes that name the wall and the frame; the chain model's answers name the session. So a
picture of another wall, of another frame or of another session is seen, and counted.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType
from rearview.contract.watermark import Watermark
from rearview.studio.protocol import FrameIn, PictureOut, frame_out

__all__ = ["Tally", "WallPlan", "percentile", "play"]

_MARK = struct.Struct(">IQ")
"""Wall and frame."""
OPENING_S = 30.0
LAST_ANSWERS_S = 10.0
"""How long answers are waited for after the last frame."""


@dataclass(frozen=True, slots=True)
class WallPlan:
    """What one page does."""

    wall: int
    fps: float
    frames: int
    lossless: bool
    pictures: tuple[bytes, ...] = field(repr=False)
    """Sent over and over."""
    warm_up: int = 0
    """First frames that are not timed."""


@dataclass
class Tally:
    """What became of a wall's frames."""

    sent: int = 0
    unsent: int = 0
    """Due, and without credit: a page keeps only its newest frame then."""
    pictures: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    crossed: int = 0
    """Pictures that are not of this wall, session and frame."""
    late_s: float = 0.0
    """The most that the page itself was behind its schedule."""
    latencies_ms: list[float] = field(default_factory=list)
    """From before a frame is written until its picture is read."""

    @property
    def lost(self) -> int:
        """Frames that were sent and have neither picture nor reason."""
        return self.sent - self.pictures - sum(self.dropped.values())

    def judge(self, plan: WallPlan, session_id: str, picture: PictureOut) -> None:
        """Count a picture."""
        self.pictures += 1
        content, mark = Watermark.read(picture.picture)
        is_mine = content == content_of(plan, picture.frame) and picture.tile == 0
        if not is_mine or (mark is not None and mark.session_id != session_id):
            self.crossed += 1


def content_of(plan: WallPlan, frame: int) -> bytes:
    """What the plan's wall sends as a frame."""
    return _MARK.pack(plan.wall, frame) + plan.pictures[frame % len(plan.pictures)]


def percentile(values: list[float], share: float) -> float:
    """The value below which a share of them lies; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else float("nan")


async def play(url: str, plan: WallPlan) -> Tally:
    """Open a wall with one tile, send the plan's frames on schedule, and wait for the last answer."""
    tally = Tally()
    async with (
        ClientSession() as http,
        http.ws_connect(
            url + "wall", headers={"Origin": url.rstrip("/")}, max_msg_size=0, compress=0
        ) as socket,
    ):
        page = _Page(socket, plan, tally)
        reader = asyncio.create_task(page.read())
        await page.open()
        await page.send()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_ANSWERS_S):
                await page.until(lambda: not tally.lost)
        await socket.send_json({"type": "bye"})
        await reader
    return tally


class _Page:
    def __init__(self, socket: ClientWebSocketResponse, plan: WallPlan, tally: Tally) -> None:
        self._socket, self._plan, self._tally = socket, plan, tally
        self._credit, self._session_id, self._came = 0, "", asyncio.Event()
        self._sent_s: dict[int, float] = {}

    async def open(self) -> None:
        policy = "lossless" if self._plan.lossless else "latest"
        options = {"drop_policy": policy, "frame_rate": self._plan.fps, "settings": {"prompt": "a"}}
        await self._socket.send_json({"type": "hello"})
        await self._socket.send_json({"type": "open", "tile": 0, "options": options})
        async with asyncio.timeout(OPENING_S):
            await self.until(lambda: bool(self._session_id))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that came has made it true."""
        while not condition():
            await self._came.wait()

    async def send(self) -> None:
        """On schedule: who falls behind sends the next one in time, and not all that are due."""
        begin_s, tally = _now(), self._tally
        for frame in range(self._plan.frames):
            due_s = begin_s + frame / self._plan.fps
            await asyncio.sleep(max(0.0, due_s - _now()))
            tally.late_s = max(tally.late_s, _now() - due_s)
            if tally.sent >= self._credit and not self._plan.lossless:
                tally.unsent += 1
                continue
            await self.until(lambda: tally.sent < self._credit)
            tally.sent += 1
            self._sent_s[frame] = _now()
            await self._socket.send_bytes(frame_out(FrameIn(frame, 0.0, content_of(self._plan, frame))))

    async def read(self) -> None:
        tally = self._tally
        async for message in self._socket:
            if message.type is WSMsgType.BINARY:
                picture, came_s = PictureOut.read(message.data), _now()
                sent_s = self._sent_s.pop(picture.frame, None)
                if sent_s is not None and picture.frame >= self._plan.warm_up:
                    tally.latencies_ms.append(1000 * (came_s - sent_s))
                tally.judge(self._plan, self._session_id, picture)
            elif message.type is WSMsgType.TEXT:
                self._hear(json.loads(message.data))
            self._came.set()
            self._came = asyncio.Event()
            answers = tally.pictures + sum(tally.dropped.values())
            if answers and answers % 4 == 0:
                await self._socket.send_json({"type": "received", "answers": answers})

    def _hear(self, said: dict[str, Any]) -> None:
        match said["type"]:
            case "welcome":
                self._credit = said["credit"]
            case "credit":
                self._credit = said["frames"]
            case "opened":
                self._session_id = said["session_id"]
            case "dropped":
                self._tally.dropped[said["reason"]] += 1


def _now() -> float:
    return asyncio.get_running_loop().time()
