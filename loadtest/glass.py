"""From glass to glass: frames with their number in their pixels go out on schedule, pictures are read for it.

A sender draws the number, encodes and sends; a receiver decodes and reads it: so what codecs and buffers
take is in the time. Both are of one process, and use its clock. By WebRTC they are aiortc's peers; by
WebSocket a page and what it gets back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType
from numpy.typing import NDArray
from rearview.studio.protocol import FrameIn, PictureOut, frame_out

if TYPE_CHECKING:
    from aiortc import RTCPeerConnection

__all__ = ["BITS", "CELL", "GlassPlan", "Seen", "by_webrtc", "by_websocket", "marked", "number_of"]

BITS, CELL = 16, 32
"""Cells of the mark are black or white, in two rows of eight."""
LAST_PICTURES_S = 1.0
FIRST_PICTURE_S = 30.0
JPEG_QUALITY = 85

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class GlassPlan:
    """What is sent."""

    fps: float
    frames: int
    warm_up: int
    """First frames that are not timed."""
    pictures: Sequence[Picture] = field(repr=False)
    """RGB, (side, side, 3), at least 256 wide; sent over and over, each with its mark."""

    @property
    def side(self) -> int:
        """Pixels."""
        return self.pictures[0].shape[0]


@dataclass
class Seen:
    """What became of the frames."""

    plan: GlassPlan
    sent_s: dict[int, float] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    """Of the frames that are timed, once each."""
    late_s: float = 0.0
    """The most that the sender was behind its schedule."""

    def sends(self, number: int, now: float, due_s: float) -> Picture:
        """The frame that is sent now, with its mark."""
        self.late_s = max(self.late_s, now - due_s)
        self.sent_s[number] = now
        return marked(self.plan.pictures[number % len(self.plan.pictures)], number)

    def sees(self, picture: Picture, now: float) -> None:
        """A picture was drawn; the same frame a second time is no news."""
        number = number_of(picture)
        sent_s = self.sent_s.pop(number, None)
        if sent_s is not None and self.plan.warm_up <= number < self.plan.frames:
            self.latencies_ms.append(1000 * (now - sent_s))

    @property
    def shown(self) -> float:
        """Share of the timed frames that were seen."""
        return len(self.latencies_ms) / max(1, self.plan.frames - self.plan.warm_up)


def marked(picture: Picture, number: int) -> Picture:
    """A copy with the number, 16 bits, in the pixels of its upper left corner."""
    copy = picture.copy()
    for bit in range(BITS):
        row, column = divmod(bit, BITS // 2)
        cell = copy[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        cell[:] = 235 if number >> bit & 1 else 20
    return copy


def number_of(picture: Picture) -> int:
    """Undo `marked`, also of what lossy codecs have left."""
    corner = picture[: 2 * CELL, : BITS // 2 * CELL].reshape(2, CELL, BITS // 2, CELL, 3)
    bits = corner[:, 8:-8, :, 8:-8].mean((1, 3, 4)).reshape(-1) > 127.5
    return int(sum(1 << bit for bit, is_set in enumerate(bits) if is_set))


# -- by WebRTC


async def by_webrtc(url: str, plan: GlassPlan) -> Seen:
    """A camera by WHIP, and a watcher of it by WHEP, at the studio of this URL."""
    from aiortc import RTCConfiguration, RTCPeerConnection

    seen, end = Seen(plan), asyncio.Event()
    camera, watcher = (RTCPeerConnection(RTCConfiguration([])) for _ in range(2))
    camera.addTransceiver(_camera_track(seen, end), "sendonly")
    watcher.addTransceiver("video", "recvonly")
    tasks: list[asyncio.Task[None]] = []
    watcher.on("track", lambda track: tasks.append(asyncio.create_task(_look_at(track, seen))))
    options = json.dumps(_options(plan))
    async with ClientSession() as http:
        try:
            await _connect(http, f"{url}whip/glass", camera, {"options": options})
            await _connect(http, f"{url}whep/glass", watcher, {})
            await end.wait()
            await asyncio.sleep(LAST_PICTURES_S)
        finally:
            for peer in (camera, watcher):
                await peer.close()
            await asyncio.gather(*tasks, return_exceptions=True)
    return seen


def _camera_track(seen: Seen, end: asyncio.Event) -> Any:
    from aiortc import MediaStreamTrack
    from av import VideoFrame

    class Camera(MediaStreamTrack):  # type: ignore[misc]
        kind = "video"
        schedule = _Schedule(seen.plan)

        async def recv(self) -> VideoFrame:
            number, due_s = await self.schedule.next()
            if number >= seen.plan.frames:
                end.set()
            frame = VideoFrame.from_ndarray(seen.sends(number, _now(), due_s), format="rgb24")
            frame.pts, frame.time_base = int(due_s * 90_000), Fraction(1, 90_000)
            return frame

    return Camera()


async def _connect(http: ClientSession, url: str, peer: RTCPeerConnection, query: dict[str, str]) -> None:
    from aiortc import RTCSessionDescription

    await peer.setLocalDescription(await peer.createOffer())
    sdp, headers = peer.localDescription.sdp, {"Content-Type": "application/sdp"}
    async with http.post(url, data=sdp, params=query, headers=headers) as answer:
        text = await answer.text()
        if answer.status != 201:
            raise RuntimeError(f"{url}: {answer.status} {text}")
    await peer.setRemoteDescription(RTCSessionDescription(text, "answer"))


async def _look_at(track: Any, seen: Seen) -> None:
    from aiortc.mediastreams import MediaStreamError

    with suppress(MediaStreamError):
        while True:
            frame = await track.recv()
            seen.sees(frame.to_ndarray(format="rgb24"), _now())


# -- by WebSocket


async def by_websocket(url: str, plan: GlassPlan) -> Seen:
    """A page of the studio of this URL, as its script does it: JPEGs out, JPEGs in."""
    seen = Seen(plan)
    origin = {"Origin": url.rstrip("/")}
    async with (
        ClientSession() as http,
        http.ws_connect(url + "wall", headers=origin, max_msg_size=0, compress=0) as socket,
    ):
        page = _Page(socket, seen)
        reader = asyncio.create_task(page.read())
        await socket.send_json({"type": "hello"})
        await socket.send_json({"type": "open", "tile": 0, "options": _options(plan)})
        async with asyncio.timeout(FIRST_PICTURE_S):
            await page.opened.wait()
        await page.send()
        await asyncio.sleep(LAST_PICTURES_S)
        await socket.send_json({"type": "bye"})
        await reader
    return seen


class _Page:
    def __init__(self, socket: ClientWebSocketResponse, seen: Seen) -> None:
        self._socket, self._seen = socket, seen
        self._credit = self._sent = self._answers = 0
        self.opened = asyncio.Event()

    async def send(self) -> None:
        """On schedule; a frame that is due without credit is not sent."""
        schedule = _Schedule(self._seen.plan)
        while True:
            number, due_s = await schedule.next()
            if number >= self._seen.plan.frames:
                return
            if self._sent >= self._credit:
                continue
            self._sent += 1
            picture = self._seen.sends(number, _now(), due_s)
            jpeg = simplejpeg.encode_jpeg(picture, JPEG_QUALITY, "RGB", "420")
            await self._socket.send_bytes(frame_out(FrameIn(number, 0.0, jpeg)))

    async def read(self) -> None:
        async for message in self._socket:
            if message.type is WSMsgType.BINARY:
                picture = PictureOut.read(message.data).picture
                self._seen.sees(simplejpeg.decode_jpeg(picture, "RGB"), _now())
                await self._take()
                continue
            said = json.loads(message.data)
            if said["type"] in ("welcome", "credit"):
                self._credit = said["credit" if said["type"] == "welcome" else "frames"]
            elif said["type"] == "dropped":
                await self._take()
            elif said["type"] == "opened":
                self.opened.set()

    async def _take(self) -> None:
        self._answers += 1
        if self._answers % 4 == 0:
            await self._socket.send_json({"type": "received", "answers": self._answers})


# -- both


class _Schedule:
    """When frames are due. Who falls behind sends the next one that is, and leaves out those between."""

    def __init__(self, plan: GlassPlan) -> None:
        self._plan, self._begin_s, self._number = plan, 0.0, -1

    async def next(self) -> tuple[int, float]:
        """Number of the next frame, and the second at which it was due, once that has come."""
        if self._number < 0:
            self._begin_s = _now()
        due = int((_now() - self._begin_s) * self._plan.fps)
        self._number = max(self._number + 1, due)
        due_s = self._begin_s + self._number / self._plan.fps
        await asyncio.sleep(max(0.0, due_s - _now()))
        return self._number, due_s


def _options(plan: GlassPlan) -> dict[str, object]:
    size = {"width": plan.side, "height": plan.side}
    return {"drop_policy": "latest", "frame_rate": plan.fps, "settings": {"prompt": "a"}, **size}


def _now() -> float:
    return asyncio.get_running_loop().time()
